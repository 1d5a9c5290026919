"""The report of `benchmarks.large_minibatch`: tables in Markdown, curves as SVG, rows as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.minibatch_grid import BASE, GRADUAL, VARIANTS, Grid
from benchmarks.svg import Panel, document

Row = dict[str, Any]
_WIDTH = 470  # px of a panel
Cells = dict[tuple[str, int], list[Row]]  # the seeds of a variant at a minibatch

# Goyal et al. 2017, tables 1, 2a and 2b and figure 1: ImageNet, ResNet-50, error in % +- std of 5.
_QUOTED = {
    (GRADUAL.name, 256): "23.60 +- 0.12",
    (GRADUAL.name, 512): "23.48 +- 0.09",
    (GRADUAL.name, 1024): "23.53 +- 0.08",
    (GRADUAL.name, 2048): "23.49 +- 0.11",
    (GRADUAL.name, 4096): "23.56 +- 0.12",
    (GRADUAL.name, 8192): "23.74 +- 0.09",
    (GRADUAL.name, 16384): "24.79 +- 0.27",
    (GRADUAL.name, 32768): "27.55 +- 0.28",
    (GRADUAL.name, 65536): "33.96 +- 0.80",
    ("linear, no warmup", 8192): "24.84 +- 0.37",
    ("linear, constant warmup", 8192): "25.88 +- 0.56",
    ("fixed eta", 8192): "41.67 +- 0.10",
    ("square root, gradual warmup", 8192): "26.22 +- 0.03",
    ("gamma = 1, gradual warmup", 8192): "24.11 +- 0.07",
}


def write_report(rows: Sequence[Row], grid: Grid, path: Path) -> None:
    """Write `path`.md, .svg and .json."""
    cells = _cells(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".md").write_text("\n".join(_markdown(rows, cells, grid, path.name)) + "\n")
    path.with_suffix(".svg").write_text(_picture(cells, rows, grid))
    path.with_suffix(".json").write_text(json.dumps(list(rows), separators=(",", ":")) + "\n")


def _cells(rows: Iterable[Row]) -> Cells:
    order = {variant.name: number for number, variant in enumerate(VARIANTS)}
    cells: Cells = {}
    for row in sorted(rows, key=lambda row: (order[row["variant"]], row["kn"], row["seed"])):
        cells.setdefault((row["variant"], row["kn"]), []).append(row)
    return cells


def _markdown(rows: Sequence[Row], cells: Cells, grid: Grid, name: str) -> Iterable[str]:
    images = sum(row["iterations"] * row["kn"] for row in rows)
    cpu = sum(row["cpu_seconds"] for row in rows)
    yield "# Error against minibatch, at a small scale"
    yield ""
    yield f"![Error against minibatch, and training curves]({name}.svg)"
    yield ""
    yield _machine(rows)
    yield (
        f"{len(rows)} runs, {images / 1e6:.1f} million images, {cpu / 60:.0f} CPU minutes "
        f"({images / cpu:,.0f} images per CPU second)."
    )
    yield ""
    yield (
        f"Every run: {grid.epochs} epochs, eta 0.1 at {BASE} images, / 10 at epochs "
        f"{' and '.join(f'{epoch:g}' for epoch in grid.milestones)}, warmup of "
        f"{grid.warmup_epochs:g} epochs, batch normalisation over groups of n = 32, weights from "
        f"the run's seed. The error of a run is the median of its last {grid.last} evaluations, "
        "one an epoch; the training error is that of the last epoch, with augmentation; mean +- "
        "standard deviation over seeds."
    )
    yield f"Options of a run: `python -m trainer.run {' '.join(rows[0]['argv'])}`"
    yield ""
    yield "| rule | kn | eta | iterations | seeds | test error, % | training error, % |"
    yield "|---|---|---|---|---|---|---|"
    for (variant, kn), found in cells.items():
        last = [_last_epoch(row["train_curve"]) for row in found if row["train_curve"]]
        yield (
            f"| {variant} | {kn:,} | {found[0]['eta']:g} | {found[0]['iterations']:,} | "
            f"{len(found)} | {_spread([row['error'] for row in found])} | {_spread(last)} |"
        )
    yield ""
    yield "The paper's own figures (QUOTED: ImageNet, ResNet-50, 90 epochs, validation error in %):"
    yield ""
    yield "| rule | kn | error |"
    yield "|---|---|---|"
    for (variant, kn), text in _QUOTED.items():
        yield f"| {variant} | {kn:,} | {text} |"


def _last_epoch(curve: Sequence[tuple[float, float]]) -> float:
    """Return the mean training error over the last epoch of a curve."""
    end = curve[-1][0]
    total = before = 0.0
    for epoch, error in curve:
        total += error * max(0.0, epoch - max(before, end - 1))
        before = epoch
    return total / min(1.0, end)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = f"{100 * statistics.mean(values):.2f}"
    return f"{mean} +- {100 * statistics.stdev(values):.2f}" if len(values) > 1 else mean


def _machine(rows: Sequence[Row]) -> str:
    commits = ", ".join(sorted({str(row["commit"])[:12] for row in rows}))
    return f"MEASURED on {rows[0]['cpu']}, torch {rows[0]['torch']}, commit {commits}."


def _picture(cells: Cells, rows: Sequence[Row], grid: Grid) -> str:
    names = [v.name for v in VARIANTS if any(variant == v.name for variant, _ in cells)]
    largest = max((kn for variant, kn in cells if variant != GRADUAL.name), default=0)
    minibatches = sorted({kn for variant, kn in cells if variant == GRADUAL.name})
    notes = [
        f"Means over seeds; left: +- 2 standard deviations for {GRADUAL.name}.",
        _machine(rows),
    ]
    return document(
        [
            _errors(cells, names, minibatches),
            _curves(
                f"training curves, {GRADUAL.name}",
                {f"{kn:,}": cells[GRADUAL.name, kn] for kn in minibatches},
                grid,
            ),
            _curves(
                f"training curves at kn = {largest:,}",
                {name: cells.get((name, largest), []) for name in names},
                grid,
            ),
        ],
        names,
        notes,
    )


def _errors(cells: Cells, names: Sequence[str], minibatches: Sequence[int]) -> Panel:
    errors = {key: [100 * row["error"] for row in found] for key, found in cells.items()}
    means = {key: statistics.mean(values) for key, values in errors.items()}
    ends: list[tuple[float, float] | None] = []
    for kn in minibatches:
        values, mean = errors[GRADUAL.name, kn], means[GRADUAL.name, kn]
        spread = 2 * statistics.stdev(values) if len(values) > 1 else 0.0
        ends.append((mean - spread, mean + spread) if spread else None)
    panel = Panel(
        title="test error against minibatch",
        x_title="minibatch kn, images",
        y_title="test error, %",
        y_ticks=_ticks([*means.values(), *(end for pair in ends if pair for end in pair)]),
        width=_WIDTH,
    )
    places = {f"{kn:,}": float(kn) for kn in minibatches}
    if len(places) > 1:
        panel.lines(places, {n: [means.get((n, kn)) for kn in minibatches] for n in names})
        panel.whiskers(places, ends)
    return panel


def _curves(title: str, groups: dict[str, list[Row]], grid: Grid) -> Panel:
    curves = {
        name: [(epoch, 100 * error) for epoch, error in _mean_curve(group)]
        for name, group in groups.items()
    }
    panel = Panel(
        title=title,
        x_title="epoch",
        y_title="training error, %",
        y_ticks=_ticks(error for curve in curves.values() for _, error in curve),
        width=_WIDTH,
    )
    panel.curves(grid.epochs, curves)
    return panel


def _mean_curve(group: Sequence[Row]) -> list[tuple[float, float]]:
    """Return the mean over seeds of a training curve."""
    curves = [_whole_windows(row["train_curve"]) for row in group if not row["diverged"]]
    return [
        (points[0][0], statistics.mean(error for _, error in points))
        for points in zip(*curves, strict=False)
    ]


def _whole_windows(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return a curve without the points that stand for the few iterations at an epoch's end."""
    ends = [0.0, *(epoch for epoch, _ in curve)]
    return [
        point for point, before in zip(curve, ends, strict=False) if point[0] - before > ends[1] / 2
    ]


def _ticks(values: Iterable[float]) -> list[float]:
    """Return round values in % around these."""
    known = list(values) or [0.0, 100.0]
    low, high = min(known), max(known)
    step = next(step for step in (1, 2, 5, 10, 20) if (high - low) / step <= 8)
    first = int(low // step)
    count = int(-(-high // step)) - first
    return [float(step * (first + k)) for k in range(max(count, 1) + 1)]
