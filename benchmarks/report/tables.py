"""Cells as tables: latency, ratios, bandwidth, CPU, algorithms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from benchmarks.harness.layouts import Layout
from benchmarks.harness.measurements import AUTO, Measurement
from benchmarks.peers.mpi import LIBRARIES

_WIDTH = 16


def size_name(nbytes: int) -> str:
    """Return "64 KiB" and the like."""
    return f"{nbytes >> 20} MiB" if nbytes >= 1 << 20 else f"{nbytes >> 10} KiB"


def microseconds(seconds: float) -> str:
    """Return microseconds with three digits or more."""
    us = seconds * 1e6
    return f"{us:.2f}" if us < 10 else f"{us:.1f}" if us < 100 else f"{us:.0f}"


def sweep(measurements: Sequence[Measurement]) -> Iterator[str]:
    """Yield the four tables of each layout and dtype, and who is absent."""
    groups: dict[tuple[Layout, str, str], list[Measurement]] = {}
    for measurement in measurements:
        groups.setdefault((measurement.layout, measurement.dtype, measurement.op), []).append(
            measurement
        )
    for (layout, dtype, op), group in groups.items():
        players = [
            p
            for p in layout.players
            if any(p in measurement.rounds or p in measurement.absent for measurement in group)
        ]
        title = f"{layout.words()}, {dtype}" + (f", {op}" if op != "sum" else "")
        limits = [name for name in ("limit", "limit-sym") if any(name in c.limits for c in group)]
        columns = [*limits, *players]
        yield from _table(f"{title}: us a call, p50/p99", group, columns, _latency)
        yield from _ratios(f"{title}: times ours", group, players, limits)
        yield from _table(f"{title}: GB/s, algbw/busbw", group, players, _bandwidth)
        yield from _table(f"{title}: CPU s/GB, all ranks", group, players, _cpu)
        reasons = {p: why for measurement in group for p, why in measurement.absent.items()}
        yield from (f"  absent: {player}: {why}" for player, why in reasons.items())
        if layout.kind == "both":
            yield "  no MPI here: it takes one machine as one node"


def algorithms(measurements: Sequence[Measurement]) -> Iterator[str]:
    """Yield a table of each layout: our algorithms and the ring by hand; what auto took."""
    for layout in dict.fromkeys(measurement.layout for measurement in measurements):
        group = [measurement for measurement in measurements if measurement.layout == layout]
        names = list(dict.fromkeys(p for c in group for p in c.rounds if p.startswith("core:")))
        yield f"{layout.words()}: comm.allreduce(algo=), float32: us a call, p50"
        shown = [name.removeprefix("core:") for name in names]
        heads = [f"{name:>{_WIDTH + 4}}" for name in (*shown, "auto", "ring by hand")]
        yield f"{'size':>8}" + "".join(heads) + "   auto took"
        for measurement in group:
            times = [f"{_median(measurement, p):>{_WIDTH + 4}}" for p in (*names, "core", "ring")]
            best = measurement.fastest([name for name in names if name in measurement.rounds])
            ratio = measurement.ratio(AUTO, best)
            took = (
                f"   {measurement.auto}; best {best.removeprefix('core:')}; auto/best {ratio:.2f}"
            )
            took += f"; the same twice {measurement.twice:.2f}"
            yield f"{size_name(measurement.nbytes):>8}" + "".join(times) + took
        yield ""


def _table(
    title: str,
    measurements: Sequence[Measurement],
    columns: Sequence[str],
    show: Callable[[Measurement, str], str],
) -> Iterator[str]:
    yield title
    yield f"{'size':>8}" + "".join(f"{name:>{_WIDTH}}" for name in columns)
    for measurement in measurements:
        texts = [show(measurement, name) if measurement.has(name) else "absent" for name in columns]
        yield f"{size_name(measurement.nbytes):>8}" + "".join(f"{text:>{_WIDTH}}" for text in texts)
    yield ""


def _ratios(
    title: str, measurements: Sequence[Measurement], players: Sequence[str], limits: Sequence[str]
) -> Iterator[str]:
    """Each peer against what is of its kind: Gloo and hier are called through torch."""
    pairs = [(p, "hier") for p in players if p.startswith("gloo")]
    pairs += [(p, "core") for p in players if p.startswith((*LIBRARIES, "ring"))]
    if "core-sym" in players:
        pairs.append(("core", "core-sym"))
    pairs += [("core" if name == "limit" else "core-sym", name) for name in limits]
    width = 2 * _WIDTH - 12
    yield title
    yield f"{'size':>8}" + "".join(f"{slow + '/' + fast:>{width}}" for slow, fast in pairs)
    for measurement in measurements:
        texts = [
            f"{measurement.ratio(slow, fast):.2f}" if measurement.has(slow, fast) else "absent"
            for slow, fast in pairs
        ]
        yield f"{size_name(measurement.nbytes):>8}" + "".join(f"{text:>{width}}" for text in texts)
    yield ""


def _median(measurement: Measurement, player: str) -> str:
    return microseconds(measurement.p50(player)) if player in measurement.rounds else "absent"


def _latency(measurement: Measurement, player: str) -> str:
    if player in measurement.limits:
        return microseconds(measurement.limits[player])
    return f"{microseconds(measurement.p50(player))}/{microseconds(measurement.p99(player))}"


def _bandwidth(measurement: Measurement, player: str) -> str:
    return f"{_three(measurement.algbw(player))}/{_three(measurement.busbw(player))}"


def _three(value: float) -> str:
    return f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def _cpu(measurement: Measurement, player: str) -> str:
    return f"{measurement.cpu_per_gb(player):.2f}"
