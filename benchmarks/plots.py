"""Pictures of saved reports (benchmarks/results), as SVG.

    python -m benchmarks.plots scaling REPORT.md OUT.svg
    python -m benchmarks.plots sweep REPORT.md OUT.svg [TITLE...]

scaling: images per second of a training step, its exposed communication, and how much of it is
hidden (test_scaling.py).
sweep: time against size, ours and each peer (test_allreduce.py), of the layouts whose titles hold
one of TITLE: "4 ranks on one node", say. Without a TITLE, of all.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.svg import Panel, decades, document, steps

_NAMES = {"none": "without communication", "hier": "hier's DDP"}
_STEP = re.compile(
    r"\s*(\d+)   (.{14})\s+([\d.]+)\s+[\d.]+%\s+(-?[\d.]+)(?:\s+[\d.]+\s+(-?\d+)%)?$"
)
_SWEEP = re.compile(r"(.*), float32: us a call, p50/p99$")
_SIZE_WIDTH, _WIDTH = 8, 16  # of the columns in tables.py
_KINDS = {
    "hier": ("hier",),
    "Gloo": ("gloo", "gloo-cubic"),
    "Open MPI": ("openmpi", "openmpi+", "openmpi-tcp", "openmpi-tcp+"),
    "MPICH": ("mpich", "mpich-tcp", "mpich-tcp+"),
    "Intel MPI": ("impi", "impi+", "impi-tcp", "impi-tcp+"),
    "ring by hand": ("ring",),
}


def scaling(lines: Sequence[str]) -> str:
    """Return the picture of a report of test_scaling.py."""
    rows = [
        (int(m[1]), m[2].strip(), float(m[3]), float(m[4]), float(m[5]) if m[5] else None)
        for m in map(_STEP.match, lines)
        if m
    ]
    if not rows:
        raise SystemExit("the report has no rows of test_scaling.py")
    ranks = sorted({row[0] for row in rows})
    ways = list(dict.fromkeys(row[1] for row in rows))
    found = {(row[0], row[1]): row[2:] for row in rows}

    def panel(title: str, unit: str, column: int, shown: Sequence[str]) -> Panel:
        values = {
            w: [found[r, w][column] if (r, w) in found else None for r in ranks] for w in ways
        }
        high = max((v for w in shown for v in values[w] if v is not None), default=0.0)
        ticks = steps(high if high > 0 else 1.0)  # all may be below 0, where nothing is drawn
        made = Panel(title=title, x_title="ranks on one node", y_title=unit, y_ticks=ticks)
        made.bars(
            [str(r) for r in ranks],
            {w: values[w] if w in shown else [None] * len(ranks) for w in ways},
        )
        return made

    reducing = [way for way in ways if way != "none"]
    head = next(line for line in lines if "images a rank; ranks" in line).split(";")[0]
    panels = [
        panel(f"{head}: images per second", "images/s", 0, ways),
        panel("communication that a step exposes", "ms", 1, reducing),
    ]
    if any(row[4] is not None for row in rows):
        panels.append(panel("communication that is hidden", "percent", 2, reducing))
    legend = [_NAMES.get(way, way.replace("stock on", "stock DDP on")) for way in ways]
    return document(panels, legend, _machine(lines))


def sweep(lines: Sequence[str], titles: Sequence[str]) -> str:
    """Return the picture of some layouts of a report of test_allreduce.py."""
    tables = {
        found[1]: _table(lines[number + 1 :])
        for number, found in enumerate(map(_SWEEP.match, lines))
        if found and (not titles or any(title in found[1] for title in titles))
    }
    if not tables:
        raise SystemExit("the report has no such table of test_allreduce.py")
    shown = [kind for kind in _KINDS if any(kind in series for _, series in tables.values())]
    panels = []
    for title, (sizes, series) in tables.items():
        times = [v for values in series.values() for v in values if v is not None]
        panel = Panel(
            title=title,
            x_title="buffer",
            y_title="us a call, median",
            y_ticks=decades(min(times), max(times)),
            y_log=True,
        )
        panel.lines(
            {size: _bytes(size) for size in sizes},
            {kind: series.get(kind, [None] * len(sizes)) for kind in shown},
        )
        panels.append(panel)
    best = "Each peer with the better of its defaults and the best settings that we found."
    return document(panels, shown, [best, *_machine(lines)])


def _table(lines: Sequence[str]) -> tuple[list[str], dict[str, list[float | None]]]:
    """Return the sizes of a table of latencies, and the least median of each kind of player."""
    names = lines[0][_SIZE_WIDTH:].split()
    sizes: list[str] = []
    series: dict[str, list[float | None]] = {}
    for line in lines[1:]:
        if not line.strip():
            break
        cells = (line[_SIZE_WIDTH + i * _WIDTH :][:_WIDTH].strip() for i in range(len(names)))
        row = dict(zip(names, cells, strict=True))
        for kind, players in _KINDS.items():
            times = [
                float(row[p].split("/")[0]) for p in players if row.get(p, "absent") != "absent"
            ]
            if any(p in row for p in players):
                series.setdefault(kind, []).append(min(times, default=None))
        sizes.append(line[:_SIZE_WIDTH].strip())
    return sizes, series


def _bytes(size: str) -> int:
    number, unit = size.split()
    return int(number) << {"KiB": 10, "MiB": 20}[unit]


def _machine(lines: Sequence[str]) -> list[str]:
    return [line for line in lines if line.startswith("MEASURED on ")][:1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the picture that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plots", description=__doc__)
    parser.add_argument("picture", choices=("scaling", "sweep"))
    parser.add_argument("report", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("title", nargs="*")
    options = parser.parse_args(arguments)
    lines = options.report.read_text().splitlines()
    text = scaling(lines) if options.picture == "scaling" else sweep(lines, options.title)
    options.out.write_text(text)


if __name__ == "__main__":
    main()
