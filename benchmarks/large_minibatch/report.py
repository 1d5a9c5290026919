"""The report of `benchmarks.large_minibatch`: tables in Markdown, curves as SVG, rows as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.large_minibatch.grid import BASE, GRADUAL, VARIANTS, Grid
from benchmarks.report import pictures

Row = dict[str, Any]
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
    _draw(cells, rows, grid, path.with_suffix(".svg"))
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


def _draw(cells: Cells, rows: Sequence[Row], grid: Grid, path: Path) -> None:
    names = [v.name for v in VARIANTS if any(variant == v.name for variant, _ in cells)]
    largest = max((kn for variant, kn in cells if variant != GRADUAL.name), default=0)
    minibatches = sorted({kn for variant, kn in cells if variant == GRADUAL.name})
    notes = [
        f"Means over seeds; left: +- 2 standard deviations for {GRADUAL.name}.",
        _machine(rows),
    ]
    with pictures.panels(3 if largest else 2, path, notes) as (errors, of_sizes, *others):
        _errors(errors, cells, names, minibatches)
        sizes = {f"{kn:,}": cells[GRADUAL.name, kn] for kn in minibatches}
        of_sizes.legend(_curves(of_sizes, sizes, grid), sizes, title="kn")
        of_sizes.set(title=f"training curves, {GRADUAL.name}")
        for of_rules in others:
            rules = {name: cells.get((name, largest), []) for name in names}
            _curves(of_rules, rules, grid)  # in the colours of the first panel
            of_rules.set(title=f"training curves at kn = {largest:,}")


def _errors(axes: Any, cells: Cells, names: Sequence[str], minibatches: Sequence[int]) -> None:
    errors = {key: [100 * row["error"] for row in found] for key, found in cells.items()}
    means = {key: statistics.mean(values) for key, values in errors.items()}
    spreads = [
        2 * statistics.stdev(values) if len(values) > 1 else 0.0
        for values in (errors[GRADUAL.name, kn] for kn in minibatches)
    ]
    series = {name: [means.get((name, kn)) for kn in minibatches] for name in names}
    pictures.lines(axes, [f"{kn:,}" for kn in minibatches], series)
    centres = [means[GRADUAL.name, kn] for kn in minibatches]
    axes.errorbar(range(len(centres)), centres, spreads, fmt="none", color=pictures.COLOURS[0])
    axes.set(title="test error against minibatch", ylabel="test error, %")
    axes.set(xlabel="minibatch kn, images")


def _curves(axes: Any, groups: dict[str, list[Row]], grid: Grid) -> list[Any]:
    """Draw a training curve of each group, nothing if all its runs diverged, and return these."""
    axes.set(xlabel="epoch", ylabel="training error, %", xlim=(0, grid.epochs))
    curves = map(_mean_curve, groups.values())
    return [axes.plot([x for x, _ in curve], [y for _, y in curve])[0] for curve in curves]


def _mean_curve(group: Sequence[Row]) -> list[tuple[float, float]]:
    """Return the mean over seeds of a training curve, in %."""
    curves = [_whole_windows(row["train_curve"]) for row in group if not row["diverged"]]
    return [
        (points[0][0], 100 * statistics.mean(error for _, error in points))
        for points in zip(*curves, strict=False)
    ]


def _whole_windows(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return a curve without the points that stand for the few iterations at an epoch's end."""
    ends = [0.0, *(epoch for epoch, _ in curve)]
    return [
        point for point, before in zip(curve, ends, strict=False) if point[0] - before > ends[1] / 2
    ]
