"""PyTorch: the backend "hier" of torch.distributed, and data-parallel training over it.

    dist.init_process_group("hier")
    model = allreduce.torch.DistributedDataParallel(model)

Importing this package registers the backend; nothing native is loaded before a group is made.
`replace_gloo` runs programs on hier that ask for "gloo".
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from allreduce.torch._autoload import register_or_warn

if TYPE_CHECKING:
    import torch.distributed as dist

    from allreduce.communicator.communicator import Communicator
    from allreduce.torch.ddp.module import DistributedDataParallel
    from allreduce.torch.gloo import replace_gloo, restore_gloo
    from allreduce.torch.sharded.sgd import ShardedSGD

__all__ = [
    "DistributedDataParallel",
    "ShardedSGD",
    "communicator",
    "replace_gloo",
    "restore_gloo",
]

_HOMES = {
    "DistributedDataParallel": "ddp.module",
    "ShardedSGD": "sharded.sgd",
    "replace_gloo": "gloo",
    "restore_gloo": "gloo",
}


def communicator(process_group: dist.ProcessGroup | None = None) -> Communicator:
    """Returns the communicator under a process group (default: the default group).

    Raises UsageError if the group's backend for CPU tensors is not "hier", and AbortedError if this
    rank is in no group (`enable_reconfigure`).
    """
    import torch.distributed as dist

    from allreduce.errors import AbortedError, UsageError
    from allreduce.torch.private_names import backend_of_cpu

    group = process_group or dist.group.WORLD
    if group is None:
        raise UsageError('no process group: call dist.init_process_group("hier") first')
    try:
        backend = backend_of_cpu(group)
    except RuntimeError as error:
        raise UsageError(f"the process group has no backend for CPU tensors: {error}") from None
    backend = getattr(backend, "wrapped_pg", backend)  # TORCH_DISTRIBUTED_DEBUG=DETAIL wraps it
    comm: Communicator | None = getattr(backend, "communicator", None)
    if comm is None and backend.name() == "hier":
        raise AbortedError(
            "this rank is in no group: call torch.distributed._reconfigure, with the handles of "
            "all members"
        )
    if comm is None:
        raise UsageError(
            f"the process group uses {backend.name()} for CPU tensors, not hier; make one with "
            'dist.init_process_group("hier") or dist.new_group(backend="hier")'
        )
    return comm


def __getattr__(name: str) -> Any:
    """Imports the larger part at its first use: this package is imported by `import torch`."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"allreduce.torch.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'allreduce.torch' has no attribute {name!r}")


register_or_warn()
