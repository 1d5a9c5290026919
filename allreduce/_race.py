"""Algorithms timed against each other, turn by turn, on all ranks of a communicator.

A turn is a burst of calls back to back, as in training. What counts is the mean over ranks, and the
median over turns; the machine may change meanwhile, but for all of them alike. Every decision that
is taken on the way rests on times that all ranks have exchanged, so all take the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from allreduce.communicator import Communicator


__all__ = ["Effort", "race"]

Call = Callable[[], object]

_FIRST_CALLS = 3  # after one that makes the plan
_BURST_SECONDS = 0.002
_BURST_MAX = 16
_HOPELESS = 2.0  # times the fastest: gets no further turns


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """Seconds for the calls at one size, and how many turns each algorithm gets there."""

    seconds: float
    least_turns: int
    most_turns: int


def race(
    comm: Communicator, calls: Mapping[str, Call], effort: Effort
) -> tuple[dict[str, float], float]:
    """Return the seconds of a call of each algorithm, and about how long all took together."""
    names = list(calls)
    first = np.array([_first_look(calls[name]) for name in names])
    comm.allreduce(first, "max")
    spent = float(first.sum()) * (1 + _FIRST_CALLS)
    seconds = dict(zip(names, map(float, first), strict=True))
    able = [name for name in names if seconds[name] <= _HOPELESS * min(seconds.values())]
    bursts = {n: max(1, min(_BURST_MAX, int(_BURST_SECONDS / seconds[n]))) for n in able}
    turn_seconds = sum((1 + bursts[name]) * seconds[name] for name in able)
    turns = int(effort.seconds / turn_seconds)
    turns = max(effort.least_turns, min(effort.most_turns, turns))
    rows = np.empty((turns, len(able)))
    for turn in range(turns):
        order = range(len(able)) if turn % 2 else reversed(range(len(able)))
        for i in order:
            rows[turn, i] = _burst(calls[able[i]], bursts[able[i]])
    comm.allreduce(rows, "avg")
    spent += turns * turn_seconds
    return seconds | dict(zip(able, map(float, np.median(rows, axis=0)), strict=True)), spent


def _first_look(call: Call) -> float:
    call()
    return min(_burst(call, 0) for _ in range(_FIRST_CALLS))


def _burst(call: Call, count: int) -> float:
    """Return the seconds of a call: of the first, or the mean of `count` calls after it."""
    begin = time.perf_counter()
    call()
    if count:  # the ranks leave other calls one after the other; this one has gathered them
        begin = time.perf_counter()
        for _ in range(count):
            call()
    return (time.perf_counter() - begin) / max(1, count)
