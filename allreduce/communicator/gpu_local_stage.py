"""The local stage of a node's devices: all ranks agree on one, or on why there is none."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from allreduce import _C
from allreduce.communicator.host_path_threshold import tune_host_path
from allreduce.cuda import nccl
from allreduce.cuda.local_stage import STAGES, VARIABLE
from allreduce.errors import Error

if TYPE_CHECKING:
    from allreduce.communicator.communicator import Communicator

__all__ = ["set_up"]

T = TypeVar("T")

log = logging.getLogger("allreduce")

_HANDLE_BYTES = 64  # of the core's SharedHandle
_ID_BYTES = 128  # of NCCL's unique id


def set_up(comm: Communicator, runtime: _C.DeviceRuntime, device: int) -> str:
    """Give the communicator the best stage that every rank can have; all ranks call it at once.

    Returns its name, "peer" or "nccl"; or "host: " and why the buffers are summed by the CPU.
    """
    if comm.world_size == comm.num_nodes or not comm.hierarchical:
        return "host: no two ranks work together on a node"
    chosen = os.environ.get(VARIABLE, "auto")
    reasons = [] if chosen in STAGES else [f"{VARIABLE}={chosen} is none of {', '.join(STAGES)}"]
    if chosen == "host":
        reasons = [f"{VARIABLE}=host asks for it"]
    wanted = STAGES.get(chosen, ())
    # Ranks whose environments differ must still take the same steps.
    wishes = comm.allgather(np.array([[name in wanted for name in ("peer", "nccl")]], np.uint8))
    for name, make, wished in zip(("peer", "nccl"), (_peers, _by_nccl), wishes.all(0), strict=True):
        if not wished:
            continue
        reason, stage = make(comm, runtime, device)
        bad = reason is not None or stage is None
        failed = np.flatnonzero(comm.allgather(np.array([bad])))
        if not failed.size and stage is not None:
            comm._group.set_device_local_stage(stage)
            if comm.tuning is not None:  # else nothing is to be measured
                tune_host_path(comm, runtime, device)
            return name
        stage = None  # on all ranks at once: each waits for the others to let go of its memory
        reasons.append(f"{name}: {reason or f'not on rank {failed[0]}'}")
    text = "; ".join(reasons) or "another rank asks for it"
    log.warning("rank %d: GPU buffers are summed by the host: %s", comm.rank, text)
    return f"host: {text}"


def _peers(
    comm: Communicator, runtime: _C.DeviceRuntime, device: int
) -> tuple[str | None, _C.DeviceLocalStage | None]:
    part = _C.MappedPeerStage.counter_bytes()
    comm._counters = counters = comm.symmetric_empty(part, "uint8")

    def make() -> _C.MappedPeerStage:
        return _C.MappedPeerStage(
            runtime=runtime,
            device=device,
            local_size=comm.local_size,
            local_rank=comm.local_rank,
            counters=counters.ctypes.data - part * comm.local_rank,
        )

    reason, peers = _try(make)
    handles = comm.allgather(_row(peers.handle if peers else b"", _HANDLE_BYTES))
    if peers is None:
        return reason, None
    reason, _ = _try(lambda: peers.open([handles[r].tobytes() for r in _neighbours(comm)]))
    return reason, peers


def _by_nccl(
    comm: Communicator, runtime: _C.DeviceRuntime, device: int
) -> tuple[str | None, _C.DeviceLocalStage | None]:
    reason, library = _try(nccl.library)
    unique_id = b""
    if library is not None and comm.local_rank == 0:
        reason, made = _try(lambda: _C.nccl_unique_id(library))
        unique_id = made or b""
    rows = comm.allgather(_row(unique_id, _ID_BYTES))
    first = rows[_neighbours(comm)[0]]
    # Nobody may join whom a neighbour will not.
    ready = comm.allgather(np.array([library is not None and bool(first.any())]))
    if library is None or not ready.all():
        return reason, None
    return _try(
        lambda: _C.NcclStage(
            library=library,
            runtime=runtime,
            device=device,
            local_size=comm.local_size,
            local_rank=comm.local_rank,
            unique_id=first.tobytes(),
            timeout=comm._group.timeout,
        )
    )


def _neighbours(comm: Communicator) -> list[int]:
    """The ranks of this node, in the order of their local ranks."""
    return [r for r in range(comm.world_size) if comm.node_of_rank[r] == comm.node]


def _try(make: Callable[[], T]) -> tuple[str | None, T | None]:
    """A reason and None, or None and the result."""
    try:
        return None, make()
    except (Error, OSError) as error:
        return str(error), None


def _row(data: bytes, nbytes: int) -> np.ndarray[Any, Any]:
    return np.frombuffer(data.ljust(nbytes, b"\0"), np.uint8).reshape(1, -1).copy()
