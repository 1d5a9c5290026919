"""Makes the backend "hier" known to torch.distributed; loads and compiles nothing until it is used.

torch calls `autoload` at the end of `import torch` (entry point group torch.backends), so that
`init_process_group("hier")` needs no import of this package.
"""

from __future__ import annotations

import logging
import os
from typing import Any

__all__ = ["autoload", "register", "register_or_warn"]

log = logging.getLogger("allreduce")


def autoload() -> None:
    """Registers the backend and never raises: an error here would break `import torch`."""
    if not register_or_warn():
        return
    try:
        if os.environ.get("HIER_REPLACE_GLOO"):
            from allreduce.torch.gloo import replace_as_asked

            replace_as_asked()
    except Exception as error:
        log.warning("Gloo is not replaced: %s", error)


def register_or_warn() -> bool:
    """Registers the backend; tells whether it is there."""
    try:
        register()
    except Exception as error:
        log.warning("the torch.distributed backend hier is not available: %s", error)
        return False
    return True


def register() -> None:
    """Registers the backend, once, if this torch has torch.distributed."""
    import torch.distributed as dist

    if dist.is_available() and not hasattr(dist.Backend, "HIER"):
        dist.Backend.register_backend("hier", _create, extended_api=True, devices=_devices())


def _devices() -> list[str]:
    """The kinds of tensors that the backend takes.

    torch takes a registered device for one that it can use: ShardedTensor moves its shards there.
    """
    import torch

    if os.environ.get("ALLREDUCE_DEVICE_RUNTIME", "cuda").startswith("cpu"):
        return ["cpu", "privateuseone"]  # for tests: a device that the CPU runtime drives
    # Of the build: whether there is a GPU is a question that would initialise CUDA.
    built: bool = torch.backends.cuda.is_built()  # type: ignore[no-untyped-call]
    return ["cpu", "cuda"] if built else ["cpu"]


def _create(options: Any, _process_group_options: object) -> Any:
    """Connects this rank's part of a new process group; called by torch."""
    from allreduce.torch.backend.process_group import connect

    return connect(
        options.store,
        int(options.group_rank),
        int(options.group_size),
        timeout=options.timeout,
        name=options.group_id,
        global_ranks=options.global_ranks_in_group,
        enable_reconfigure=getattr(options, "enable_reconfigure", False),  # torch 2.14 on
    )
