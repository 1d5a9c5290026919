"""Pictures of saved runs (`--save-report`), drawn by matplotlib.

    python -m benchmarks.report.pictures training RUN.json OUT.svg
    python -m benchmarks.report.pictures sweep RUN.json OUT.svg [TITLE...]
    python -m benchmarks.report.pictures hosts FIGURES.json OUT.svg
    python -m benchmarks.report.pictures at_scale - OUT.svg

training: images per second of a training step, and its exposed communication (test_scaling.py).
sweep: time against size, ours and each peer (test_allreduce.py), of the layouts whose words hold
one of TITLE: "4 ranks on one node", say. Without a TITLE, of all.
hosts: time of an iteration and efficiency on emulated hosts (benchmarks.networks.figures).
at_scale: efficiency on up to 10,000 GPUs, of no run (benchmarks.networks.at_scale).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot

from benchmarks.networks import at_scale
from benchmarks.networks.prediction import SIMULATED, published
from benchmarks.networks.training import ALONE
from benchmarks.report.tables import size_name

# Okabe and Ito's: told apart by everybody.
COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#882255"),
    "#999999",
)
_LEGEND_COLUMNS = 6
_INK, _MUTED, _GRID = "#222222", "#555555", "#dddddd"
_STYLE: dict[str, Any] = {
    **{"font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "text.color": _INK},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": _MUTED},
    **{"axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True, "grid.color": _GRID},
    **{"xtick.color": _MUTED, "ytick.color": _MUTED, "axes.labelcolor": _MUTED},
    **{
        "xtick.minor.bottom": False,
        "ytick.minor.left": False,
        "legend.frameon": False,
        "lines.linewidth": 1.2,
    },
    # The same figures give the same file.
    **{"svg.fonttype": "none", "svg.hashsalt": "benchmarks", "font.family": "sans-serif"},
    "axes.prop_cycle": mpl.cycler(color=COLOURS),
}
_WAYS = {  # words and colour
    "none": ("without communication", "#999999"),
    "hier": ("hier's DDP", COLOURS[0]),
    "stock on hier": ("stock DDP on hier", COLOURS[4]),
    "stock on gloo": ("stock DDP on Gloo", COLOURS[1]),
}
_PEERS = {
    "hier": ("hier",),
    "Gloo": ("gloo", "gloo-cubic"),
    "Open MPI": ("openmpi", "openmpi+", "openmpi-tcp", "openmpi-tcp+"),
    "MPICH": ("mpich", "mpich-tcp", "mpich-tcp+"),
    "Intel MPI": ("impi", "impi+", "impi-tcp", "impi-tcp+"),
    "ring by hand": ("ring",),
}


@contextmanager
def panels(count: int, path: Path, notes: Sequence[str], width: float = 5.0) -> Iterator[list[Any]]:
    """Yields `count` axes side by side; then adds the legend and the notes, and saves the file.

    width: of a panel, in inches.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = pyplot.subplots(
            1, count, figsize=(width * count, 3.9), layout="constrained", squeeze=False
        )
        yield list(axes[0])
        named: dict[str, Any] = {}
        for one in axes[0]:
            handles, names = one.get_legend_handles_labels()
            named |= dict(zip(names, handles, strict=True))
        if named:
            columns = min(len(named), _LEGEND_COLUMNS)
            figure.legend(named.values(), named, loc="outside upper center", ncols=columns)
        figure.supxlabel("\n".join(notes), fontsize=7, color=_MUTED, x=0.01, ha="left")
        figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
        pyplot.close(figure)


def lines(axes: Any, names: Sequence[str], series: Mapping[str, Sequence[float | None]]) -> None:
    """Draws a line of each series over named places, evenly spaced. The first is ours, and thicker.

    A series without values is not drawn, but keeps its colour.
    """
    for number, (name, values) in enumerate(series.items()):
        known = [(x, y) for x, y in enumerate(values) if y is not None]
        if known:
            xs, ys = zip(*known, strict=True)
            width, size = (2.6, 5.5) if number == 0 else (1.3, 4)
            colour = COLOURS[number % len(COLOURS)]
            style = "o--" if name.endswith(SIMULATED) else "o-"
            axes.plot(xs, ys, style, c=colour, label=name, linewidth=width, markersize=size)
    axes.set_xticks(range(len(names)), names)


def sweep(run: Mapping[str, Any], path: Path, titles: Sequence[str] = ()) -> None:
    """Draws the median call of each peer by size, a panel for each layout."""
    cells = [c for c in run.get("sweep", []) if (c["dtype"], c["op"]) == ("float32", "sum")]
    layouts = [
        words
        for words in dict.fromkeys(cell["layout"] for cell in cells)
        if not titles or any(title in words for title in titles)
    ]
    if not layouts:
        raise SystemExit("the run has no such sweep of test_allreduce.py")
    best = "Each peer with the better of its defaults and the best settings that we found."
    with panels(len(layouts), path, [best, f"MEASURED on {run['machine']}"]) as axes:
        for one, words in zip(axes, layouts, strict=True):
            found = {c["nbytes"]: c["players"] for c in cells if c["layout"] == words}
            series = {peer: [_best(found[n], peer) for n in found] for peer in _PEERS}
            lines(one, list(map(size_name, found)), series)
            one.set(title=words, ylabel="us a call, median", yscale="log")
            one.set(xlabel="buffer (evenly spaced, not to scale)")
            one.yaxis.set_major_formatter("{x:,.0f}")


def _best(players: Mapping[str, Mapping[str, float]], peer: str) -> float | None:
    return min((players[p]["p50_us"] for p in _PEERS[peer] if p in players), default=None)


def training(run: Mapping[str, Any], path: Path) -> None:
    """Draws the rate of a training step and its exposed communication, by the number of ranks."""
    rows = run.get("training", [])
    if not rows:
        raise SystemExit("the run has no rows of test_scaling.py")
    shown = {
        "images per second": "images_per_s",
        "communication that a step exposes, ms": "exposed_ms",
    }
    first = rows[0]
    notes = [
        f"{first['model']}, {first['images']} images a rank, all ranks on one node. A bar below 0 "
        "is not drawn.",
        f"MEASURED on {run['machine']}",
    ]
    with panels(len(shown), path, notes) as axes:
        for one, (title, key) in zip(axes, shown.items(), strict=True):
            _bars(one, rows, list(_WAYS) if key == "images_per_s" else list(_WAYS)[1:], key)
            one.set(title=title, xlabel="ranks")


def _bars(axes: Any, rows: Sequence[Mapping[str, Any]], ways: Sequence[str], key: str) -> None:
    ranks = sorted({row["ranks"] for row in rows if key in row})
    width = 0.86 / len(ways)
    for number, way in enumerate(ways):
        values = {r["ranks"]: r[key] for r in rows if r["way"] == way and key in r}
        places = [ranks.index(r) + (number - (len(ways) - 1) / 2) * width for r in values]
        heights = [max(0.0, value) for value in values.values()]
        words, colour = _WAYS[way]
        bars = axes.bar(places, heights, width * 0.94, color=colour, label=words)
        axes.bar_label(bars, [f"{value:.0f}" for value in values.values()], fontsize=7, padding=1)
    axes.set_xticks(range(len(ranks)), list(map(str, ranks)))


def hosts(run: Mapping[str, Any], path: Path) -> None:
    """Draw the paper's figures 7 and 8 from emulated hosts, and the models of what cannot run."""
    found = {int(count): one for count, one in run["hosts"].items()}
    computing = next(iter(found.values()))["iteration"]
    series: dict[str, list[float]] = {}
    for count, one in found.items():
        seconds = {way: median(times) for way, times in one["seconds"].items() if way != ALONE}
        seconds |= published(count, one, run["scale"])
        for way, taken in seconds.items():
            series.setdefault(way, []).append(taken)
    notes = [
        "Real ranks, buckets and TCP; computation is a sleep. Right: nothing below 80 % is drawn.",
        "EMULATED on one machine; dashed: SIMULATED by published formulas",
    ]
    ways = sorted(series, key=lambda way: not way.startswith("buckets"))
    series = {way: series[way] for way in ways}
    with panels(2, path, notes, width=6.5) as (left, right):
        names = list(map(str, found))
        lines(left, names, {way: [1e3 * s for s in times] for way, times in series.items()})
        left.axhline(1e3 * computing, color=_MUTED, linestyle=":", linewidth=1)
        left.set(title="ms an iteration (figure 7)", xlabel="hosts of 8 GPUs")
        left.set_ylim(bottom=0)
        lines(right, names, {way: [computing / s for s in times] for way, times in series.items()})
        right.set(title="images per second and host, beside one host alone (figure 8)")
        right.set(xlabel="hosts of 8 GPUs", ylim=(0.8, 1.01))
        right.set_yticks([0.8, 0.85, 0.9, 0.95, 1.0])
        right.yaxis.set_major_formatter("{x:.0%}")


def scale(path: Path) -> None:
    """Draw the efficiency on many hosts, a panel for each network."""
    ways = (*at_scale.WAYS, at_scale.VARIED, at_scale.FAILING)
    notes = [
        "ResNet-50, the paper's computation. Hosts vary as the paper's, by a fit; links fail as in "
        "a training of Llama 3.",
        "SIMULATED by the cost model",
    ]
    gpus = [f"{count * at_scale.GPUS:,}" for count in at_scale.HOSTS]
    with panels(len(at_scale.NETWORKS), path, notes) as axes:
        for one, network in zip(axes, at_scale.NETWORKS, strict=True):
            series = {
                way: [at_scale.efficiency(count, network, way) for count in at_scale.HOSTS]
                for way in ways
            }
            lines(one, gpus, series)
            one.set(title=network, xlabel="GPUs", ylabel="efficiency", ylim=(0, 1.05))
            one.yaxis.set_major_formatter("{x:.0%}")
            one.tick_params(axis="x", labelrotation=60)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws the picture that the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report.pictures", description=__doc__
    )
    parser.add_argument("picture", choices=("training", "sweep", "hosts", "at_scale"))
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("title", nargs="*")
    options = parser.parse_args(arguments)
    if options.picture == "at_scale":
        scale(options.out)
        return
    run = json.loads(options.run.read_text())
    if options.picture == "training":
        training(run, options.out)
    elif options.picture == "hosts":
        hosts(run, options.out)
    else:
        sweep(run, options.out, options.title)


if __name__ == "__main__":
    main()
