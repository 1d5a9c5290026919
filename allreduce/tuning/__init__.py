"""What is known about the speed of a group's collectives, and the choices that follow.

A `Tuning` comes from the measurements of `init`, or from a file that `python -m allreduce.tune` has
written. It holds the links' figures, for the cost model, and by layout the measured times of
algorithms; where there are times, they decide. docs/tuning.md says how.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import TypeAlias

from allreduce import _C
from allreduce.schedules import algorithms
from allreduce.tuning.cost import Layout, Link, distinct_algorithms

__all__ = [
    "EXTRAPOLATED",
    "LOCAL_STAGE_ALONE",
    "MEASURED",
    "PREDICTED",
    "Choice",
    "LayoutTuning",
    "Points",
    "Tuning",
    "candidates",
    "decide",
    "fastest",
    "interpolate",
    "limits",
    "slopes",
]

Points: TypeAlias = tuple[tuple[int, float], ...]  # (bytes, seconds), by ascending bytes
Times: TypeAlias = Mapping[str, Points]  # by algorithm

_EQUAL = 1.03  # times that differ by no more are equal: measured again, the other may win
_SIZES = tuple(2**k for k in range(6, 33))
_NO_LIMIT = 2**63 - 1
LOCAL_STAGE_ALONE = "shared memory"  # in place of an algorithm where no schedule runs
# How a time is known; extrapolated: from times that were measured at other sizes alone.
MEASURED, EXTRAPOLATED, PREDICTED = "measured", "extrapolated", "predicted"


@dataclass(frozen=True, slots=True)
class Choice:
    """Up to so many bytes of a buffer this algorithm serves; None: any size."""

    up_to: int | None
    algorithm: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutTuning:
    """What was measured of one layout: `nodes` are the ranks of each node.

    choices, times: by collective. lanes, rails, segment_bytes: what was best; None: as by default.
    """

    nodes: tuple[int, ...]
    local: str
    choices: Mapping[str, tuple[Choice, ...]] = field(default_factory=dict)
    times: Mapping[str, Times] = field(default_factory=dict)
    lanes: int | None = None
    rails: int | None = None
    segment_bytes: int | None = None

    def fits(self, layout: Layout) -> bool:
        """Say whether it was measured in this layout."""
        return (self.nodes, self.local) == (layout.nodes, layout.local)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Figures of links by their class, and what was measured of layouts.

    source: in words. digest: of a file's content, "" if there is none; all ranks have the same.
    brief: it is what `init` has seen in passing; `Communicator.measure` tells more.
    """

    links: Mapping[str, Link]
    layouts: tuple[LayoutTuning, ...] = ()
    source: str = "measured at init"
    digest: str = ""
    brief: bool = False

    def of(self, layout: Layout) -> LayoutTuning | None:
        """Return what was measured of this very layout."""
        return next((tuned for tuned in self.layouts if tuned.fits(layout)), None)

    def lanes(self, world_size: int) -> int | None:
        """Return the lanes for so many ranks; their nodes are known only when they have met."""
        fitting = (tuned.lanes for tuned in self.layouts if sum(tuned.nodes) == world_size)
        return next(fitting, None)

    def seconds(self, layout: Layout, algorithm: str, nbytes: int) -> tuple[float, str] | None:
        """Return the seconds of an allreduce, and whether they are MEASURED or not.

        They are EXTRAPOLATED outside of the sizes that were measured, and PREDICTED by the model
        where none was. None if neither its times nor its links are known.
        """
        tuned = self.of(layout)
        times = tuned.times.get("allreduce", {}) if tuned else {}
        algorithm = candidates(layout).get(algorithm, algorithm)
        found = interpolate(times, algorithm, nbytes, slopes(layout, times, self.links))
        if found is not None:
            points = times[algorithm]
            inside = points[0][0] <= nbytes <= points[-1][0]
            return found, MEASURED if inside else EXTRAPOLATED
        predicted = self.predict(layout, algorithm, nbytes)
        return None if predicted is None else (predicted, PREDICTED)

    def measured_sizes(self, layout: Layout, algorithm: str) -> tuple[int, int] | None:
        """Return the smallest and the largest size at which an allreduce was measured."""
        tuned = self.of(layout)
        points = tuned.times.get("allreduce", {}).get(algorithm) if tuned else None
        return (points[0][0], points[-1][0]) if points else None

    def predict(self, layout: Layout, algorithm: str, nbytes: int) -> float | None:
        """Return the seconds by the model alone; None if the links of this layout are unknown."""
        try:
            return layout.predict(algorithm, nbytes, self.links)
        except KeyError:
            return None

    def choices(self, layout: Layout) -> dict[str, tuple[Choice, ...]]:
        """Return by collective which algorithm serves which sizes; nothing where nothing is known.

        Measured choices count; an allreduce in a layout that was not measured follows the model.
        """
        tuned = self.of(layout)
        if tuned is not None:
            return dict(tuned.choices)
        if layout.ranks_of_schedule == 1:
            return {}
        times: dict[str, Points] = {}
        for name in dict.fromkeys(candidates(layout).values()):
            points = [(size, self.predict(layout, name, size)) for size in _SIZES]
            times[name] = tuple((size, t) for size, t in points if t is not None)
        return {"allreduce": decide(times)} if all(times.values()) else {}


def candidates(layout: Layout) -> Mapping[str, str]:
    """Return for each algorithm of an allreduce the one that stands for it in a layout.

    The values, in their order, are what there is to choose from.
    """
    if layout.ranks_of_schedule == 1:
        return dict.fromkeys(["auto", *algorithms("allreduce")], LOCAL_STAGE_ALONE)
    return distinct_algorithms(layout.ranks_of_schedule)


def slopes(layout: Layout, times: Times, links: Mapping[str, Link]) -> dict[str, float]:
    """Return by algorithm what each further byte of an allreduce takes, where the model knows."""
    needed = layout.demands(next(iter(times)), 0) if times else {}
    if not times or not set(needed) <= set(links):
        return {}
    return {name: layout.seconds_per_byte(name, links) for name in times}


def interpolate(
    times: Times, algorithm: str, nbytes: int, beyond: Mapping[str, float] = MappingProxyType({})
) -> float | None:
    """Return an algorithm's seconds at a size: on straight lines between its points.

    Beyond the last point the model goes on from there, at `beyond` seconds a byte: noise in the
    last points must not decide what is fastest far away. Without it the last line goes on. None for
    an algorithm without points, or given up before this size while others went on.
    """
    points = times.get(algorithm, ())
    if not points:
        return None
    last = points[-1][0]
    if nbytes > last and last < max(other[-1][0] for other in times.values() if other):
        return None
    if nbytes <= points[0][0]:
        return points[0][1]
    lines = list(pairwise(points)) or [((0, 0.0), points[0])]
    (n0, t0), (n1, t1) = next((line for line in lines if nbytes <= line[1][0]), lines[-1])
    slope = (t1 - t0) / (n1 - n0)
    if nbytes > n1:
        slope = beyond.get(algorithm, max(slope, 0.0))
    return t1 + (nbytes - n1) * slope


def decide(times: Times, beyond: Mapping[str, float] = MappingProxyType({})) -> tuple[Choice, ...]:
    """Return which algorithm serves which sizes, by their times; `beyond` as in `interpolate`."""
    rows: list[Choice] = []
    for size in _SIZES:
        found = {name: interpolate(times, name, size, beyond) for name in times}
        known = {name: seconds for name, seconds in found.items() if seconds is not None}
        name = fastest(known, favourite=rows[-1].algorithm if rows else "")
        if rows and rows[-1].algorithm == name:
            rows.pop()
        rows.append(Choice(size, name))
    rows[-1] = Choice(None, rows[-1].algorithm)
    return tuple(rows)


def fastest(seconds: Mapping[str, float], favourite: str = "") -> str:
    """Return the fastest algorithm; the favourite if it is about as fast, else the first such."""
    least = min(seconds.values())
    near = [name for name, taken in seconds.items() if taken <= least * _EQUAL]
    if favourite in near:
        return favourite
    return near[0]


def limits(choices: Mapping[str, Sequence[Choice]]) -> list[tuple[_C.Collective, int, str]]:
    """Return choices as the core takes them."""
    return [
        (
            _C.Collective.__members__[collective],
            _NO_LIMIT if choice.up_to is None else choice.up_to,
            choice.algorithm,
        )
        for collective, rows in choices.items()
        for choice in rows
    ]
