"""What we want to reach, and whether this run did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from allreduce.schedules import algorithms
from benchmarks.harness.measurements import AUTO, Measurement
from benchmarks.report.tables import size_name

_KIB, _MIB = 1 << 10, 1 << 20


@dataclass(frozen=True, kw_only=True)
class Target:
    """How many times faster than the best of `peers`; or, `at_most`, how many times their time."""

    what: str
    bounds: dict[int, float]  # by number of ranks
    ours: str
    peers: tuple[str, ...]
    kind: str = "one node"  # of the layout
    low: int = 0
    high: int = 1 << 62
    test: str = "sweep"
    at_most: bool = False

    def ratio(self, measurement: Measurement) -> float:
        """Return the measurement's ratio to the best peer that was measured in it."""
        present = [peer for peer in self.peers if measurement.has(peer)]
        if self.at_most:
            return measurement.ratio(self.ours, measurement.fastest(present))
        return min(measurement.ratio(peer, self.ours) for peer in present)

    def measurements(self, measurements: Sequence[Measurement], ranks: int) -> list[Measurement]:
        """Return the measurements that it speaks of."""
        return [
            c
            for c in measurements
            if (c.test, c.layout.kind, c.layout.ranks) == (self.test, self.kind, ranks)
            and self.low <= c.nbytes <= self.high
            and c.has(self.ours)
            and any(c.has(peer) for peer in self.peers)
        ]


def _gloo(what: str, bounds: Sequence[float], low: int, high: int, kind: str) -> list[Target]:
    by_ranks = dict(zip((2, 4, 8, 16), bounds, strict=False))
    return [
        Target(
            what=f"hier vs {peer}, {kind}, {what}",
            bounds=by_ranks,
            ours="hier",
            peers=(peer,),
            kind=kind,
            low=low,
            high=high,
        )
        for peer in ("gloo", "gloo-cubic")
    ]


TARGETS = [
    *_gloo("1-64 KiB", (15, 25, 30, 60), 0, 64 * _KIB, "one node"),
    *_gloo("1 MiB", (3, 4, 4, 8), _MIB, _MIB, "one node"),
    *_gloo("100 MiB", (2, 3, 2.5, 3), 100 * _MIB, 100 * _MIB, "one node"),
    Target(
        what="symmetric vs private buffers, 1-16 MiB",
        bounds={2: 1.4, 4: 1.4, 8: 1.4},
        ours="core-sym",
        peers=("core",),
        low=_MIB,
        high=16 * _MIB,
    ),
    Target(
        what="core vs the best MPI, one node, any size",
        bounds={2: 1.0, 4: 1.2, 8: 1.5, 16: 1.5},
        ours="core",
        peers=("openmpi", "openmpi+", "mpich", "impi", "impi+"),
    ),
    *_gloo("<= 64 KiB", (4, 8, 10, 20), 0, 64 * _KIB, "TCP"),
    *_gloo("256 KiB-1 MiB", (1.8, 2.5, 3, 5), 256 * _KIB, _MIB, "TCP"),
    *_gloo(">= 4 MiB", (1.25, 1.2, 1.2, 1.1), 4 * _MIB, 1 << 62, "TCP"),
    *(
        Target(
            what=f"core vs {peer}, any size",
            bounds={2: 0.9, 4: 1.0, 8: 1.5, 16: 2.0},
            ours="core",
            peers=(peer,),
            kind="TCP",
        )
        for peer in ("openmpi-tcp", "openmpi-tcp+")
    ),
    Target(
        what="bf16 and f16 vs gloo's, one node, >= 64 KiB",
        bounds={2: 5, 4: 5},
        ours="hier",
        peers=("gloo",),
        low=64 * _KIB,
        test="dtypes",
    ),
    Target(
        what="our schedule `ring` vs a ring by hand, TCP, >= 16 KiB",
        bounds={2: 1.05, 4: 1.05},
        ours="core:ring",
        peers=("ring",),
        kind="TCP",
        low=16 * _KIB,
        test="algorithms",
        at_most=True,
    ),
    *(
        Target(
            what=f"auto vs the best fixed algorithm, {kind}",
            bounds=dict.fromkeys(ranks, 1.1),
            ours=AUTO,
            peers=tuple(f"core:{name}" for name in algorithms("allreduce")),
            kind=kind,
            test="algorithms",
            at_most=True,
        )
        for kind, ranks in (("TCP", (2, 3, 4, 8)), ("both", (4, 8)), ("flat", (2, 4)))
    ),
    *(
        Target(
            what=f"{ours} vs the memory-traffic limit, >= 16 MiB",
            bounds={2: 1.5, 4: 1.5, 8: 1.5, 16: 1.5},
            ours=ours,
            peers=(limit,),
            low=16 * _MIB,
            at_most=True,
        )
        for ours, limit in (("core", "limit"), ("core-sym", "limit-sym"))
    ),
]


def lines(measurements: Sequence[Measurement]) -> Iterator[str]:
    """Yield a row for each target and number of ranks: the worst size decides."""
    missing = 0
    for target in TARGETS:
        for ranks, bound in target.bounds.items():
            found = [(target.ratio(c), c) for c in target.measurements(measurements, ranks)]
            if found:
                yield _line(target, ranks, bound, found)
            else:
                missing += 1
    if missing:
        yield f"{missing} targets were not measured: deselected, or the peer is absent"


def _line(target: Target, ranks: int, bound: float, found: list[tuple[float, Measurement]]) -> str:
    pick = max if target.at_most else min
    worst, measurement = pick(found, key=lambda pair: pair[0])
    met = worst <= bound if target.at_most else worst >= bound
    verdict = "met" if met else "MISSED"
    if target.ours == AUTO and not met:
        noise = max(measurement.twice for _, measurement in found)
        verdict += f"; the same call twice: to {noise:.2f}"
        beyond = [size_name(c.nbytes) for ratio, c in found if ratio > bound * noise]
        verdict += f"; beyond that: {', '.join(beyond) or 'nowhere, so within noise'}"
    where = size_name(measurement.nbytes) + (
        f" {measurement.dtype}" if target.test == "dtypes" else ""
    )
    return (
        f"{target.what:<58} {ranks:>2} ranks   target {'<=' if target.at_most else '>='}"
        f" {bound:<5g} got {worst:>7.2f} at {where:<16} {verdict}"
    )
