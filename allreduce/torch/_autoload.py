"""Makes the backend "hier" known to torch.distributed; loads and compiles nothing until it is used.

torch calls `autoload` at the end of `import torch` (entry point group torch.backends), so that
`init_process_group("hier")` needs no import of this package.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

__all__ = ["autoload", "register"]

log = logging.getLogger("allreduce")


def autoload() -> None:
    """Registers the backend and never raises: an error here would break `import torch`."""
    try:
        register()
    except Exception as error:
        log.warning("the torch.distributed backend hier is not available: %s", error)


def register() -> None:
    """Registers the backend, once, if this torch has torch.distributed."""
    import torch.distributed as dist

    if dist.is_available() and not hasattr(dist.Backend, "HIER"):
        dist.Backend.register_backend("hier", _create, extended_api=True, devices=["cpu"])


def _create(options: Any, _process_group_options: object) -> Any:
    """Connects this rank's part of a new process group; called by torch."""
    from allreduce.communicator import Communicator
    from allreduce.torch._load import load

    module = load()
    rank, world_size = int(options.group_rank), int(options.group_size)
    timeout: timedelta = options.timeout
    comm = Communicator.from_store(
        options.store,
        rank,
        world_size,
        timeout=timeout.total_seconds(),
        generation=_generation(options.store, rank),
        nodes=_nodes_of(options.global_ranks_in_group),
    )
    backend = module.Backend(comm._group.capsule(), rank, world_size, timeout)
    backend.communicator = comm
    backend.options.global_ranks_in_group = options.global_ranks_in_group
    backend.options.group_name = options.group_id
    return backend


def _generation(store: Any, rank: int) -> int:
    """Counts how often this rank has made this group, so that no key of an earlier one is read."""
    return (int(store.add(f"hier/made_by/{rank}", 1)) - 1) % (1 << 16)


def _nodes_of(global_ranks: list[int]) -> list[str] | None:
    """The nodes of a subgroup's ranks, as the default group knows them; None for that group itself.

    A subgroup must not ask the environment: ALLREDUCE_NODES describes the whole job.
    """
    import torch.distributed as dist

    from allreduce.torch import communicator

    if not dist.is_initialized() or not global_ranks:
        return None
    try:
        whole = communicator()
    except ValueError:  # the default group uses another backend
        return None
    return [str(whole.node_of_rank[rank]) for rank in global_ranks]
