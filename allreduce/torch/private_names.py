"""Names of torch that the library uses, and that torch does not promise to keep.

tests/torch/test_private_names.py uses each, with the oldest and the newest release of torch in CI.
Not here: what `replace_gloo` wraps, since it looks first whether that is there; the base class of
normalisation, which `allreduce.optim` needs and which may not import this package; and the
`torch._foreach_` functions, which users of torch have in their optimizers as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

if TYPE_CHECKING:
    import torch.distributed as dist

__all__ = [
    "after_backward",
    "backend_of_cpu",
    "ddp_around",
    "in_backward_pass",
    "join_disabled",
    "tree_leaves",
    "tree_map_only",
]


def in_backward_pass() -> bool:
    """Whether this thread runs a backward pass."""
    return torch._C._current_graph_task_id() != -1


def after_backward(call: Callable[[], None]) -> None:
    """Calls at the end of the backward pass that this thread runs."""
    torch.autograd.Variable._execution_engine.queue_callback(call)


def backend_of_cpu(group: dist.ProcessGroup) -> Any:
    """The backend of a process group for tensors on the CPU; RuntimeError without one."""
    return group._get_backend(torch.device("cpu"))


def ddp_around() -> list[nn.Parameter] | None:
    """The parameters of torch's DistributedDataParallel whose forward pass runs; None outside."""
    from torch.nn.parallel import DistributedDataParallel

    around: Any = DistributedDataParallel._active_ddp_module
    return None if around is None else list(around._module_parameters)


def join_disabled() -> Any:
    """What a `Joinable` has for its `_join_config` outside of torch's Join."""
    from torch.distributed.algorithms.join import _JoinConfig

    return _JoinConfig.construct_disabled_join_config()  # type: ignore[no-untyped-call]
