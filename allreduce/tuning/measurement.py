"""Measuring a communicator: times of algorithms, and the links' figures.

BRIEFLY is what `init` can afford: some hundredths of a second. On a slow network, where that is the
time of some messages, it is the fewest calls that tell the links' figures; the cost model chooses
then. WELL is for who will call for minutes; `python -m allreduce.tune` takes longer still.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from allreduce import _C
from allreduce.schedules import algorithms
from allreduce.tuning import (
    LOCAL_STAGE_ALONE,
    LayoutTuning,
    Points,
    Times,
    Tuning,
    candidates,
    decide,
    slopes,
)
from allreduce.tuning.cost import Layout, Link
from allreduce.tuning.timing import TimeBudget, time_alternating

if TYPE_CHECKING:
    from allreduce.communicator.communicator import Communicator

__all__ = [
    "BRIEFLY",
    "WELL",
    "Contestants",
    "Depth",
    "allreduce_contestants",
    "call_of",
    "fit",
    "measure",
    "size_sweep",
]

_BYTES_THAT_COUNT = 256 << 10
_CATCHES_UP = 1.01  # an algorithm that sends so much more than the least never does at large sizes
_LOST = 1.6  # times the fastest
_GIVEN_UP = 2  # sizes in a row that were lost: once may be a busy machine

_LARGE = 1 << 30  # bytes
_GAMMA_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """How much is measured.

    source: in words. brief: there is more to know.
    sizes: in bytes; the first least_sizes are measured however long they take.
    effort, budget: at each size, and seconds of all calls.
    effort_alone, budget_alone: the same where there is nothing to choose, only figures to find.
    effort_once: at one more size, where those that were measured do not tell beta.
    gamma_repeats: how often a sum is timed.
    skip_above: nothing is measured if a look at each algorithm takes more seconds: 256 ranks on two
        cores, say, whose times would tell of the cores alone.
    """

    source: str
    brief: bool
    sizes: tuple[int, ...]
    least_sizes: int
    effort: TimeBudget
    budget: float
    effort_alone: TimeBudget
    budget_alone: float
    effort_once: TimeBudget
    gamma_repeats: int
    skip_above: float


_A_LOOK = TimeBudget(seconds=0.0, least_turns=0, most_turns=2, first_calls=2)
BRIEFLY = Depth(
    source="measured at init",
    brief=True,
    sizes=tuple(1 << k for k in range(10, 26, 3)),
    least_sizes=1,
    effort=TimeBudget(seconds=0.006, least_turns=0, most_turns=8, first_calls=2),
    budget=0.02,
    effort_alone=_A_LOOK,
    budget_alone=0.005,
    effort_once=_A_LOOK,
    gamma_repeats=2,
    skip_above=0.5,
)
WELL = Depth(
    source="measured",
    brief=False,
    sizes=tuple(1 << k for k in range(10, 26, 2)),
    least_sizes=2,
    effort=TimeBudget(seconds=0.06, least_turns=2, most_turns=32),
    budget=0.6,
    effort_alone=TimeBudget(seconds=0.04, least_turns=2, most_turns=6),
    budget_alone=0.6,
    effort_once=TimeBudget(seconds=0.0, least_turns=1, most_turns=2),
    gamma_repeats=12,
    skip_above=float("inf"),
)


def measure(comm: Communicator, depth: Depth) -> Tuning | None:
    """Return what was measured of this communicator, the same on all ranks; every rank calls it.

    What the communicator's tuning says of other layouts, links and collectives stays in it. None
    where measuring would take too long.
    """
    begin = time.perf_counter()
    layout = comm.layout
    field = _field(comm, depth)
    if field is None:
        return None
    effort, budget = depth.effort, depth.budget
    if len(field.sent) == 1:
        effort, budget = depth.effort_alone, depth.budget_alone
    times = size_sweep(comm, field, depth.sizes, effort, budget, depth.least_sizes)
    links = fit(comm, _with_bytes(comm, field, times, depth.effort_once), depth.gamma_repeats)
    before = comm.tuning or Tuning(links={})
    old = before.of(layout) or LayoutTuning(nodes=layout.nodes, local=layout.local)
    choices = {name: rows for name, rows in old.choices.items() if name != "allreduce"}
    if layout.ranks_of_schedule > 1:
        choices["allreduce"] = decide(times, slopes(layout, times, links))
    tuned = replace(old, choices=choices, times={**old.times, "allreduce": times})
    others = tuple(one for one in before.layouts if not one.fits(layout))
    seconds = time.perf_counter() - begin
    return Tuning(
        links={**before.links, **links},
        layouts=(tuned, *others),
        source=f"{depth.source} in {seconds:.2f} s",
        brief=depth.brief,
    )


def _field(comm: Communicator, depth: Depth) -> Contestants | None:
    """Return who races; None if a look at each would take too long."""
    ranks = comm.layout.ranks_of_schedule
    look = _seconds_of_a_call(comm) * depth.effort.least_calls  # at the fastest algorithm, about
    if look * (len(algorithms("allreduce")) if ranks > 1 else 1) > depth.skip_above:
        return None
    field = allreduce_contestants(comm.layout)
    if ranks == 1:
        return field
    if depth.brief and comm._connections.connector is not None:
        few = 4 * ranks.bit_length()  # else the look would connect each rank with all others
        names = [name for name in field.sent if _peers(name, ranks) <= few]
        field = replace(field, sent={name: field.sent[name] for name in names})
    link = comm.layout.schedule_link
    rounds = [comm.layout.demands(name, 0)[link].rounds for name in field.sent]
    return None if look * sum(rounds) / min(rounds) > depth.skip_above else field


def _peers(algorithm: str, ranks: int) -> int:
    """Return with how many ranks the first one exchanges data."""
    moves = np.asarray(_C.build(_C.Collective.allreduce, algorithm, ranks).moves())
    return len({*moves[moves[:, 1] == 0, 2].tolist(), *moves[moves[:, 2] == 0, 1].tolist()})


def _seconds_of_a_call(comm: Communicator) -> float:
    """Return what a small call takes the slowest rank, behind one that makes the plan."""
    one = np.zeros(1)
    comm.allreduce(one, "max")
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        comm.allreduce(one, "max")
        seconds.append(time.perf_counter() - begin)
    one[0] = min(seconds)
    return float(comm.allreduce(one, "max")[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestants:
    """Who races: the algorithms of a collective, and what each sends of a large buffer."""

    collective: str
    sent: Mapping[str, float]


def allreduce_contestants(layout: Layout) -> Contestants:
    """Return the algorithms of an allreduce that differ in a layout."""
    names = dict.fromkeys(candidates(layout).values())
    demands = {name: layout.demands(name, _LARGE).get(layout.schedule_link) for name in names}
    return Contestants(
        collective="allreduce",
        sent={name: found.sent if found else 0.0 for name, found in demands.items()},
    )


def _with_bytes(comm: Communicator, field: Contestants, times: Times, effort: TimeBudget) -> Times:
    """Return times that tell beta: on a slow network the sweep ends where a message costs all.

    Of those that send the least, the one that was fastest is timed once more. It is no time to
    choose by: the others have none at this size.
    """
    if max(points[-1][0] for points in times.values()) >= _BYTES_THAT_COUNT:
        return times
    lean = [name for name in times if field.sent[name] <= _CATCHES_UP * min(field.sent.values())]
    name = min(lean, key=lambda name: times[name][-1][1])
    buffer = np.zeros(_BYTES_THAT_COUNT // 4, np.float32)
    call = call_of(comm, field.collective, buffer, _BYTES_THAT_COUNT, name)
    seconds, _ = time_alternating(comm, {name: call}, effort)
    return {**times, name: (*times[name], (_BYTES_THAT_COUNT, seconds[name]))}


def size_sweep(
    comm: Communicator,
    field: Contestants,
    sizes: Sequence[int],
    effort: TimeBudget,
    budget: float,
    least_sizes: int = 2,
) -> dict[str, Points]:
    """Return the times of the algorithms, size by size.

    It stops where the budget, in seconds, would not do for the next size, unless this is one of the
    least sizes. An algorithm that has lost twice, and sends too much to ever win again, is given
    up: its times end there.
    """
    names, sent = list(field.sent), field.sent
    buffer = np.zeros(_whole_elements(comm, field.collective, max(sizes)), np.float32)
    times: dict[str, list[tuple[int, float]]] = {name: [] for name in names}
    lost = dict.fromkeys(names, 0)
    spent = 0.0
    for number, size in enumerate(sizes):
        if number >= least_sizes:
            growth = size / sizes[number - 1]
            soon = sum(times[name][-1][1] for name in names) * growth * effort.least_calls
            if spent + soon > budget:
                break
        calls = {name: call_of(comm, field.collective, buffer, size, name) for name in names}
        seconds, taken = time_alternating(comm, calls, effort)
        spent += taken
        for name in names:
            times[name].append((size, seconds[name]))
        least, least_sent = min(seconds.values()), min(sent[name] for name in names)
        for name in names:
            lost[name] = lost[name] + 1 if seconds[name] > _LOST * least else 0
        names = [n for n in names if lost[n] < _GIVEN_UP or sent[n] <= _CATCHES_UP * least_sent]
    return {name: tuple(points) for name, points in times.items()}


def call_of(
    comm: Communicator, collective: str, buffer: npt.NDArray[np.float32], size: int, algorithm: str
) -> Callable[[], None]:
    """Return the core's call of a collective on about the first `size` bytes of a buffer."""
    data = buffer[: _whole_elements(comm, collective, size)]
    algo = "auto" if algorithm == LOCAL_STAGE_ALONE else algorithm
    return comm._bound(_C.Collective.__members__[collective], data, "float32", algo=algo)


def _whole_elements(comm: Communicator, collective: str, nbytes: int) -> int:
    """Return the elements of about `nbytes`: as many on each rank where the buffer is split."""
    split = _C.Collective.__members__[collective].chunks != _C.Chunks.any
    ranks = comm.world_size if split else 1
    return max(1, nbytes // (4 * ranks)) * ranks


def fit(
    comm: Communicator, times: Times, gamma_repeats: int = WELL.gamma_repeats
) -> dict[str, Link]:
    """Return the links' figures that explain the times best, by class; the same on all ranks.

    gamma_repeats: how often a sum is timed.
    """
    layout = comm.layout
    gamma = np.array([_seconds_per_byte_reduced(gamma_repeats)])
    comm.allreduce(gamma, "min")
    kinds = list(layout.demands(next(iter(times)), 0))
    figures = np.zeros(3 * len(kinds))
    if comm.rank == 0:  # alone: two machines may round differently
        figures = _figures(layout, kinds, times, float(gamma[0]))
    comm.broadcast(figures, root=0)
    return {
        kind: Link(float(alpha), float(beta), float(gamma[0]), float(overhead))
        for kind, (alpha, overhead, beta) in zip(kinds, figures.reshape(-1, 3), strict=True)
    }


def _figures(
    layout: Layout, kinds: Sequence[str], times: Times, gamma: float
) -> npt.NDArray[np.float64]:
    """Return alpha, overhead and beta of each class in a row; relative errors count."""
    rows, left = [], []
    for name, points in times.items():
        for nbytes, seconds in points:
            demands = layout.demands(name, nbytes)
            row: list[float] = []
            reducing = 0.0
            for kind in kinds:
                demand = demands[kind]
                row += [demand.rounds, demand.further_messages, demand.sent]
                reducing += demand.reduced * gamma
            rows.append([figure / seconds for figure in row])
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


def _seconds_per_byte_reduced(repeats: int) -> float:
    into, source = np.zeros((2, _GAMMA_BYTES // 4), np.float32)
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        _C.reduce(into, source, "float32", "sum")
        seconds.append(time.perf_counter() - begin)
    return min(seconds) / _GAMMA_BYTES
