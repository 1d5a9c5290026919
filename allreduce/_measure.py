"""Measuring a new communicator, in under a second: times of algorithms, and the links' figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from allreduce import _C
from allreduce._arrays import memory_of
from allreduce._race import Effort, race
from allreduce.cost import Layout, Link
from allreduce.tuning import LOCAL_STAGE_ALONE, Points, Times, Tuned, Tuning, candidates, decide

if TYPE_CHECKING:
    from allreduce.communicator import Communicator

__all__ = ["allreduce_times", "fit", "measure"]

_SIZES = tuple(1 << k for k in (10, 13, 16, 19, 22))  # bytes
_LEAST_SIZES = 2  # are measured, however long it takes: alpha and beta need them
_BUDGET = 0.5  # seconds for all calls
_EFFORT = Effort(seconds=0.06, least_turns=2, most_turns=7)
_CALLS_LEAST = 7  # of each algorithm at a size
_CATCHES_UP = 1.01  # an algorithm that sends so much more than the least never does at large sizes
_LOST = 1.6  # times the fastest

_GAMMA_BYTES, _GAMMA_REPEATS = 1 << 20, 12


def measure(comm: Communicator) -> Tuning:
    """Return what was measured of this communicator, the same on all ranks; every rank calls it."""
    begin = time.perf_counter()
    layout = comm.layout
    times = allreduce_times(comm, _SIZES, _EFFORT, _BUDGET)
    links = fit(comm, times)
    choices = {} if layout.ranks_of_schedule == 1 else {"allreduce": decide(times)}
    tuned = Tuned(
        nodes=layout.nodes, local=layout.local, choices=choices, times={"allreduce": times}
    )
    seconds = time.perf_counter() - begin
    return Tuning(links=links, layouts=(tuned,), source=f"measured at init in {seconds:.2f} s")


def allreduce_times(
    comm: Communicator, sizes: Sequence[int], effort: Effort, budget: float
) -> dict[str, Points]:
    """Return the times of the algorithms that an allreduce has a choice of, size by size.

    It stops where the budget, in seconds, would not do for the next size. An algorithm that has
    lost, and sends too much to ever win again, is given up: its times end there.
    """
    layout = comm.layout
    names = list(dict.fromkeys(candidates(layout).values()))
    sent = {name: layout.demands(name).get(layout.schedule_link, (0.0,) * 3)[1] for name in names}
    data = np.zeros(max(sizes) // 4, np.float32)
    times: dict[str, list[tuple[int, float]]] = {name: [] for name in names}
    spent = 0.0
    for number, nbytes in enumerate(sizes):
        if number >= _LEAST_SIZES:
            growth = nbytes / sizes[number - 1]
            soon = sum(times[name][-1][1] for name in names) * growth * _CALLS_LEAST
            if spent + soon > budget:
                break
        calls = {name: _allreduce(comm, data[: nbytes // 4], name) for name in names}
        seconds, taken = race(comm, calls, effort)
        spent += taken
        for name in names:
            times[name].append((nbytes, seconds[name]))
        least, least_sent = min(seconds.values()), min(sent[name] for name in names)
        names = [
            name
            for name in names
            if seconds[name] <= _LOST * least or sent[name] <= _CATCHES_UP * least_sent
        ]
    return {name: tuple(points) for name, points in times.items()}


def fit(comm: Communicator, times: Times) -> dict[str, Link]:
    """Return the links' figures that explain the times best, by class; the same on all ranks."""
    layout = comm.layout
    gamma = np.array([_seconds_per_byte_reduced()])
    comm.allreduce(gamma, "min")
    kinds = list(layout.demands(next(iter(times))))
    figures = _figures(layout, kinds, times, float(gamma[0]))
    comm.broadcast(figures, root=0)  # two machines may round differently
    pairs = figures.reshape(-1, 2)
    return {
        kind: Link(float(alpha), float(beta), float(gamma[0]))
        for kind, (alpha, beta) in zip(kinds, pairs, strict=True)
    }


def _figures(
    layout: Layout, kinds: Sequence[str], times: Times, gamma: float
) -> npt.NDArray[np.float64]:
    """Return alpha and beta of each class in a row; relative errors count."""
    rows, left = [], []
    for name, points in times.items():
        demands = layout.demands(name)
        for nbytes, seconds in points:
            row: list[float] = []
            reducing = 0.0
            for kind in kinds:
                messages, sent, reduced = demands[kind]
                row += [messages / seconds, sent * nbytes / seconds]
                reducing += reduced * nbytes * gamma
            rows.append(row)
            left.append(max(0.0, 1 - reducing / seconds))
    return _nonnegative(np.array(rows), np.array(left))


def _nonnegative(
    rows: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the least squares solution without negative figures, by trying every set of zeros."""
    columns = rows.shape[1]
    best, least = np.zeros(columns), np.inf
    for count in range(columns, 0, -1):
        for used in map(list, combinations(range(columns), count)):
            found = np.zeros(columns)
            found[used] = np.linalg.lstsq(rows[:, used], wanted, rcond=None)[0]
            error = float(((rows @ found - wanted) ** 2).sum())
            if (found >= 0).all() and error < least:
                best, least = found, error
    return best


def _allreduce(comm: Communicator, data: npt.NDArray[np.float32], name: str) -> Callable[[], None]:
    algorithm = "auto" if name == LOCAL_STAGE_ALONE else name
    call = comm._call(_C.Collective.allreduce, memory_of(data, "x", comm.rank), algo=algorithm)
    run = comm._group.run
    return lambda: run(**call)


def _seconds_per_byte_reduced() -> float:
    into, source = np.zeros((2, _GAMMA_BYTES // 4), np.float32)
    seconds = []
    for _ in range(_GAMMA_REPEATS):
        begin = time.perf_counter()
        _C.reduce(into, source, "float32", "sum")
        seconds.append(time.perf_counter() - begin)
    return min(seconds) / _GAMMA_BYTES
