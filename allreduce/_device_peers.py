"""Lets the devices of a node work together: exchanges memory handles, or says why not."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from allreduce import _C
from allreduce.errors import CudaError, UsageError

if TYPE_CHECKING:
    from allreduce.communicator import Communicator

__all__ = ["HOST_PATH_BYTES", "use_peers"]

T = TypeVar("T")

log = logging.getLogger("allreduce")

HOST_PATH_BYTES = 256 << 10  # up to here the CPU sums; the same number in the core's options
_HANDLE_BYTES = 64
_VARIABLE = "ALLREDUCE_DEVICE_LOCAL"
_CHOICES = ("auto", "host")


def use_peers(comm: Communicator, runtime: _C.DeviceRuntime, device: int) -> str:
    """Set up the local stage of this node's devices; every rank calls it at the same place.

    Returns which stage is used, and why: "peer", or "host: " and the reason.
    """
    if comm.world_size == comm.num_nodes or not comm.hierarchical:
        return "host: no two ranks work together on a node"
    reason, peers = _try(lambda: _own(comm, runtime, device))
    handles = comm.allgather(_row(peers.handle if peers else b""))
    if peers is not None:
        rows = handles[[r for r in range(comm.world_size) if comm.node_of_rank[r] == comm.node]]
        reason, _ = _try(lambda: peers.open([row.tobytes() for row in rows]))
    failed = np.flatnonzero(comm.allgather(np.array([reason is not None])))
    if failed.size or peers is None:
        reason = reason or f"not possible on rank {', '.join(map(str, failed))}"
        log.warning("rank %d: GPU buffers are summed by the host: %s", comm.rank, reason)
        return f"host: {reason}"
    comm._group.set_peers(peers)
    return "peer"


def _own(comm: Communicator, runtime: _C.DeviceRuntime, device: int) -> _C.DevicePeers:
    chosen = os.environ.get(_VARIABLE, "auto")
    if chosen not in _CHOICES:
        raise UsageError(f"{_VARIABLE}={chosen}: must be one of {', '.join(_CHOICES)}")
    part = _C.DevicePeers.counter_bytes()
    comm._counters = counters = comm.symmetric_empty(part, "uint8")
    if chosen == "host":
        raise UsageError(f"{_VARIABLE}=host asks for it")
    return _C.DevicePeers(
        runtime=runtime,
        device=device,
        local_size=comm.local_size,
        local_rank=comm.local_rank,
        counters=counters.ctypes.data - part * comm.local_rank,
    )


def _try(make: Callable[[], T]) -> tuple[str | None, T | None]:
    """A reason and None, or None and the result."""
    try:
        return None, make()
    except (CudaError, UsageError, OSError) as error:
        return str(error), None


def _row(handle: bytes) -> np.ndarray[Any, Any]:
    return np.frombuffer(handle.ljust(_HANDLE_BYTES, b"\0"), np.uint8).reshape(1, -1).copy()
