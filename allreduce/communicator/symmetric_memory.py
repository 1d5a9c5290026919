"""Symmetric memory: arrays that all ranks of a node map, each rank's at a place that all know."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any
from zlib import crc32

import numpy as np

from allreduce import _C
from allreduce.communicator.arrays import itemsize
from allreduce.errors import SystemCallError, UsageError
from allreduce.rendezvous.connect import Connections, exchange_fd
from allreduce.rendezvous.shared_memory import close_fds, create_shared_memory

_ALIGNMENT = 64  # bytes, of each rank's part


class _Mapped:
    """Lets NumPy look at a shared mapping and keep it alive."""

    def __init__(self, mapping: _C.SharedMapping, address: int, nbytes: int) -> None:
        self._mapping = mapping
        self.__array_interface__ = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }


def symmetric_empty(
    group: _C.Group, connections: Connections, shape: int | Sequence[int], dtype: str
) -> np.ndarray[Any, Any]:
    """Return a new array in symmetric memory; see `Communicator.symmetric_empty`."""
    shape = _checked(shape, connections.rank)
    nbytes = math.prod(shape) * itemsize(dtype)
    part = max(_ALIGNMENT, -(-nbytes // _ALIGNMENT) * _ALIGNMENT)
    _agree(group, f"symmetric {shape} {dtype}")
    fd, problem = -1, None
    if connections.rank == connections.local_ranks[0]:
        try:
            fd = create_shared_memory(part * len(connections.local_ranks), "allreduce-symmetric")
        except SystemCallError as error:
            problem = error
    try:
        fd = exchange_fd(connections, fd, group.timeout)  # -1 tells the others that there is none
        if problem:
            raise problem
        mapping, address = group.add_symmetric(fd, part)
    finally:
        close_fds([fd])
    stored = "uint16" if dtype == "bfloat16" else dtype
    flat = np.asarray(_Mapped(mapping, address, part))[:nbytes]
    return flat.view(stored).reshape(shape)


def _checked(shape: int | Sequence[int], rank: int) -> tuple[int, ...]:
    try:
        sizes = tuple(operator.index(n) for n in ([shape] if isinstance(shape, int) else shape))
    except TypeError:
        sizes = (-1,)
    if any(n < 0 for n in sizes):
        raise UsageError(f"shape={shape!r} on rank {rank}: must be integers of 0 or more")
    return sizes


def _agree(group: _C.Group, name: str) -> None:
    """Raise MismatchError on all ranks if they ask for different memory."""
    token = np.zeros(1, np.uint8)
    group.run(
        _C.Collective.barrier, token.ctypes.data, 1, "uint8", "max", name_hash=crc32(name.encode())
    )
