"""Algorithms timed against each other, turn by turn, on all ranks of a communicator.

A turn is a burst of calls back to back, as in training; its time is that of its median call, for a
rank that loses its core for a moment makes a few calls long. What counts is the mean over ranks,
and the median over turns; the machine may change meanwhile, but for all of them alike. Who is
behind by more than the noise gets no further turns: the time is for those between whom it is open.
Every decision that is taken on the way rests on times that all ranks have exchanged, so all take
the same.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from allreduce.communicator.communicator import Communicator


__all__ = ["TimeBudget", "time_alternating"]

Call = Callable[[], object]

_BURST_SECONDS = 0.001
_BURST_MAX = 16
_HOPELESS = 2.0  # times the fastest: gets no turns
_TURNS_AT_ONCE = 2  # before times are exchanged: one in each order


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeBudget:
    """Seconds for the turns at one size, and how many turns each algorithm gets there.

    first_calls: timed before the turns, behind one that makes the plan.
    """

    seconds: float
    least_turns: int
    most_turns: int
    first_calls: int = 3

    @property
    def least_calls(self) -> int:
        """Return how many calls each algorithm makes at a size, if it is not hopeless."""
        return 1 + self.first_calls + 2 * self.least_turns


def time_alternating(
    comm: Communicator, calls: Mapping[str, Call], effort: TimeBudget
) -> tuple[dict[str, float], float]:
    """Return the seconds of a call of each algorithm, and about how long all took together."""
    names = list(calls)
    first = np.array([_first_look(calls[name], effort.first_calls) for name in names])
    comm.allreduce(first, "max")
    looked = float(first.sum()) * (1 + effort.first_calls)
    seconds = dict(zip(names, map(float, first), strict=True))
    able = [name for name in names if seconds[name] <= _HOPELESS * min(seconds.values())]
    turns: dict[str, list[float]] = {name: [] for name in able}
    done, spent = 0, 0.0
    while done < effort.most_turns:
        counts = [max(1, min(_BURST_MAX, int(_BURST_SECONDS / seconds[n]))) for n in able]
        soon = sum((1 + k) * seconds[n] for n, k in zip(able, counts, strict=True))
        soon *= _TURNS_AT_ONCE
        if done >= effort.least_turns and spent + soon > effort.seconds:
            break
        rows = np.empty((_TURNS_AT_ONCE, len(able)))
        for turn, row in enumerate(rows):
            order = range(len(able)) if turn % 2 else reversed(range(len(able)))
            for i in order:
                row[i] = _burst(calls[able[i]], counts[i])
        comm.allreduce(rows, "avg")
        done, spent = done + _TURNS_AT_ONCE, spent + soon
        for name, column in zip(able, rows.T, strict=True):
            turns[name] += map(float, column)
            seconds[name] = float(np.median(turns[name]))
        least, noise = min(seconds[name] for name in able), 1 / math.sqrt(done)
        able = [name for name in able if seconds[name] <= least * (1 + noise)]
    return seconds, looked + spent


def _first_look(call: Call, count: int) -> float:
    call()
    return min(_time(call) for _ in range(count))


def _burst(call: Call, count: int) -> float:
    """Return the seconds of the median of `count` calls.

    One before them gathers the ranks, which leave other calls one after the other.
    """
    call()
    return statistics.median([_time(call) for _ in range(count)])


def _time(call: Call) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
