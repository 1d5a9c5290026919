"""Runs as one picture: error curves, learning rate, where the time went, scaling."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.output.end_table import PHASE_NAMES, PHASES
from trainer.report.runs import Run, scaling

__all__ = ["draw"]

# One hue for each run; of six validated for colour-blind readers, in this order.
_RUNS = ("#2a78d6", "#eb6834", "#1baf7a", "#eda100", "#4a3aa7", "#e34948")
_PHASES = ("#eda100", "#86b6ef", "#2a78d6", "#e34948", "#1baf7a", "#b5b4ad")
_INK, _MUTED, _GRID = "#0b0b0b", "#52514e", "#e4e3de"


def draw(runs: Sequence[Run], path: Path) -> None:
    """Writes a PNG or SVG, as the name of `path` says.

    ImportError without matplotlib, ValueError for another kind of file.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style: Any = {
        **{"font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "text.color": _INK},
        **{"axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": _MUTED},
        **{"axes.grid": True, "grid.color": _GRID, "grid.linewidth": 0.6, "axes.axisbelow": True},
        **{"xtick.color": _MUTED, "ytick.color": _MUTED, "axes.labelcolor": _MUTED},
        **{"svg.hashsalt": "trainer", "axes.titlelocation": "left", "legend.frameon": False},
    }
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(2, 2, figsize=(10, 7), layout="constrained")
        _errors(axes[0, 0], runs)
        _rates(axes[0, 1], runs)
        _phases(axes[1, 0], runs)
        _scaling(axes[1, 1], runs)
        figure.savefig(path, dpi=150)
        pyplot.close(figure)


def _color(index: int) -> str:
    return _RUNS[index % len(_RUNS)]


def _errors(axes: Any, runs: Sequence[Run]) -> None:
    axes.set_title("Error by epoch: training (thin) and test (thick)")
    for index, run in enumerate(runs):
        color = _color(index)
        epochs = [line["epoch"] for line in run.train]
        errors = [100 * line["train_error"] for line in run.train]
        axes.plot(epochs, errors, color=color, linewidth=0.8, alpha=0.6)
        epochs = [line["epoch"] for line in run.test]
        errors = [100 * line["test_error"] for line in run.test]
        mark = "o" if len(epochs) <= 30 else None
        axes.plot(
            epochs, errors, color=color, linewidth=2, marker=mark, markersize=4, label=run.name
        )
    axes.set(xlabel="epoch", ylabel="error, %", ylim=(0, None), xlim=(0, None))
    axes.legend(fontsize=8)


def _rates(axes: Any, runs: Sequence[Run]) -> None:
    axes.set_title("Learning rate by epoch (logarithmic)")
    for index, run in enumerate(runs):
        epochs = [line["epoch"] for line in run.train]
        rates = [line["eta"] for line in run.train]
        axes.plot(epochs, rates, color=_color(index), linewidth=2, label=run.name)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="epoch", ylabel="learning rate", xlim=(0, None))


def _phases(axes: Any, runs: Sequence[Run]) -> None:
    axes.set_title("Share of training time, %")
    names = [run.name for run in runs]
    left = [0.0] * len(runs)
    for phase, color in zip(PHASES, _PHASES, strict=True):
        shares = []
        for run in runs:
            whole = sum(line[f"{p}_seconds"] for line in run.train for p in PHASES)
            shares.append(100 * sum(line[f"{phase}_seconds"] for line in run.train) / whole)
        name = PHASE_NAMES.get(phase, phase)
        axes.barh(names, shares, left=left, color=color, label=name, height=0.6, edgecolor="white")
        for row, (share, begin) in enumerate(zip(shares, left, strict=True)):
            if share >= 8:
                ink = "white" if color in ("#2a78d6", "#e34948") else _INK
                middle = begin + share / 2
                axes.text(middle, row, f"{share:.0f}", ha="center", va="center", color=ink)
        left = [a + b for a, b in zip(left, shares, strict=True)]
    axes.set(xlim=(0, 100))
    axes.grid(visible=False)
    axes.invert_yaxis()
    axes.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.1))


def _scaling(axes: Any, runs: Sequence[Run]) -> None:
    groups = scaling(runs)
    if not groups:
        axes.set_title("Images per second by epoch")
        for index, run in enumerate(runs):
            epochs = [line["epoch"] for line in run.train]
            speeds = [line["images_per_second"] for line in run.train]
            axes.plot(epochs, speeds, color=_color(index), linewidth=1.2)
        axes.set(xlabel="epoch", ylabel="images/s", ylim=(0, None), xlim=(0, None))
        return
    axes.set_title("Images per second, and efficiency")
    ticks = sorted({k for _, rows in groups for k, _, _ in rows})
    for index, (name, rows) in enumerate(groups):
        workers, rates, _ = zip(*rows, strict=True)
        ideal = [rates[0] * k / workers[0] for k in workers]
        label = "ideal" if index == 0 else None
        axes.plot(workers, ideal, color=_MUTED, linewidth=1, linestyle="--", label=label)
        label = "measured" if len(groups) == 1 else name
        axes.plot(workers, rates, color=_color(index), linewidth=2, marker="o", label=label)
        for k, rate, efficiency in rows:
            place = {"textcoords": "offset points", "xytext": (0, 7), "ha": "center"}
            axes.annotate(f"{efficiency:.0%}", (k, rate), color=_INK, **place)
    axes.margins(x=0.08, y=0.12)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.minorticks_off()
    axes.set(xlabel="workers", ylabel="images/s")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, loc="upper left")
