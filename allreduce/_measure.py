"""Measuring alpha, beta and gamma of a new communicator, in some tens of milliseconds."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from allreduce import _C
from allreduce.cost import Link

if TYPE_CHECKING:
    from allreduce.communicator import Communicator

_SMALL, _LARGE = 64, 1 << 20  # bytes
_REPEATS = 12


def measure(comm: Communicator) -> Link:
    """Return the link that the ranks' schedules run over, the same on all ranks: rank 0's figures.

    Every rank calls it. It times small and large allreduces by halving/doubling among the nodes (or
    all ranks, where there is no local stage), whose cost the model knows in closed form.
    """
    small = _least_seconds(comm, _SMALL, "recursive_doubling")
    large = _least_seconds(comm, _LARGE, "halving_doubling")
    gamma = _seconds_per_byte_reduced()
    ranks = comm.num_nodes if comm.hierarchical else comm.world_size
    rounds = max(1, (ranks - 1).bit_length())
    alpha = small / rounds
    moved = 2 * (ranks - 1) / ranks * _LARGE
    beta = max((large - 2 * rounds * alpha - moved / 2 * gamma) / moved, 1e-12)
    figures = np.array([alpha, beta, gamma])  # rank 0's: all ranks must choose the same
    comm.broadcast(figures, root=0)
    return Link(*map(float, figures))


def _least_seconds(comm: Communicator, nbytes: int, algorithm: str) -> float:
    data = np.zeros(nbytes // 4, np.float32)
    seconds = []
    for _ in range(_REPEATS):
        begin = time.perf_counter()
        comm.allreduce(data, algo=algorithm)
        seconds.append(time.perf_counter() - begin)
    return min(seconds)  # whatever else the machine does only adds to it


def _seconds_per_byte_reduced() -> float:
    into, source = np.zeros((2, _LARGE // 4), np.float32)
    seconds = []
    for _ in range(_REPEATS):
        begin = time.perf_counter()
        _C.reduce(into, source, "float32", "sum")
        seconds.append(time.perf_counter() - begin)
    return min(seconds) / _LARGE
