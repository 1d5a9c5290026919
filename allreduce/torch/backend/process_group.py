"""Makes the backend of a process group, and what the backend itself asks of Python."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from allreduce.communicator.communicator import Communicator
from allreduce.errors import Timeout
from allreduce.torch import communicator
from allreduce.torch.backend.load import load
from allreduce.torch.backend.members import name_group, new_handle, nodes_of, order_of
from allreduce.tuning.option import tuning_for_any_layout

__all__ = ["allocate", "connect", "reconfigure", "split", "stream_handle"]


def connect(
    store: Any,
    rank: int,
    world_size: int,
    *,
    timeout: timedelta,
    name: str,
    global_ranks: Sequence[int],
    enable_reconfigure: bool = False,
) -> Any:
    """Connects this rank with the others of a group over their store; returns a `_backend.Backend`.

    With `enable_reconfigure` it connects nobody: it is in no group before `reconfigure`.

    Raises what `Communicator.from_store` raises.
    """
    module = load()
    whole = _default_communicator() if global_ranks else None
    # A subgroup must not ask the environment: ALLREDUCE_NODES describes the whole job.
    nodes = [str(whole.node_of_rank[r]) for r in global_ranks] if whole else None
    handle = new_handle(rank, world_size, nodes)
    backend = module.Backend(store, rank, world_size, timeout, handle)
    backend.options.global_ranks_in_group = list(global_ranks)
    backend.options.group_name = name
    if enable_reconfigure:
        return backend
    comm = Communicator.from_store(
        store,
        rank,
        world_size,
        timeout=timeout.total_seconds(),
        nodes=nodes,
        tuning=whole.tuning if whole else None,
        measure=whole is None,  # a part of the job follows the whole
    )
    backend.enter(comm, store)
    return backend


def reconfigure(
    backend: Any,
    store: Any,
    uuid: int,
    handles: Collection[str],
    timeout: timedelta,
) -> None:
    """Makes this rank a member of the group of those whose handles are given, and of no other.

    handles: of all members; a list is in rank order, and a set gives the ranks to all alike.

    timeout: to connect; the group's calls have that of the process group.

    Raises UsageError where the handles cannot be a group's, with all as it was before; and what
    `Communicator.from_store` raises, with this rank in no group.
    """
    mine = backend.handle
    members = order_of(mine, handles)
    part: Any = dist.PrefixStore(  # type: ignore[attr-defined]
        name_group(uuid, members), store
    )
    tuning = tuning_for_any_layout(os.environ)
    backend.leave(uuid)
    try:
        comm = Communicator.from_store(
            part,
            members.index(mine),
            len(members),
            timeout=timeout.total_seconds(),
            nodes=nodes_of(members),
            tuning=tuning,
        )
    except Timeout as error:
        raise Timeout(
            f"reconfigure {uuid}: {error}. Ranks are places among the handles; members that gave "
            "other handles, another order or another uuid do not meet"
        ) from None
    backend.enter(comm, part)


def split(
    parent: Communicator,
    store: Any,
    ranks: Sequence[int],
    timeout: timedelta,
    name: str,
    global_ranks: Sequence[int],
) -> Any:
    """The backend of a subgroup of the ranks `ranks` of the parent; None on any other rank."""
    if parent.rank not in ranks:
        return None
    everyone = list(global_ranks) or list(ranks)
    rank = list(ranks).index(parent.rank)
    return connect(store, rank, len(ranks), timeout=timeout, name=name, global_ranks=everyone)


def allocate(comm: Communicator, count: int, like: Tensor) -> Tensor:
    """A flat tensor of `count` elements in symmetric memory, of the dtype of `like`.

    On a GPU it is an ordinary one: there is no symmetric memory of GPUs.

    Every rank of the group must call it, with the same arguments.
    """
    if like.device.type != "cpu":
        return like.new_empty(count)
    nbytes = count * like.element_size()
    array: np.ndarray[Any, Any] = comm.symmetric_empty(nbytes, "uint8")
    return torch.from_numpy(array).view(like.dtype)


def stream_handle(stream_id: int, device_index: int, device_type: int) -> int:
    """The cudaStream_t of one of torch's streams, which torch before 2.13 tells Python alone."""
    stream = torch.cuda.Stream(  # type: ignore[no-untyped-call]
        stream_id=stream_id, device_index=device_index, device_type=device_type
    )
    return int(stream.cuda_stream)


def _default_communicator() -> Communicator | None:
    """The communicator of the default group, if there is one already and it uses hier."""
    if not dist.is_initialized():
        return None
    try:
        return communicator()
    except ValueError:
        return None
