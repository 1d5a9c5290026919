"""Pictures show what the reports say. Nothing is timed here."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks import plots, svg, tables
from benchmarks.cells import Cell
from benchmarks.conftest import RESULTS
from benchmarks.layouts import Layout
from benchmarks.worlds import Round

_SVG = "{http://www.w3.org/2000/svg}"
_TIMES = {"hier": (20e-6, 1e-3), "gloo": (2e-3, 5e-3), "gloo-cubic": (3e-3, 4e-3)}  # 1 KiB, 1 MiB


def _cell(nbytes: int, times: dict[str, float]) -> Cell:
    rounds = {name: [Round(np.array([seconds]), 0.0, 0)] for name, seconds in times.items()}
    return Cell("sweep", Layout(2, 1), nbytes, rounds=rounds, absent={"mpich": "not here"})


def _report() -> list[str]:
    cells = [
        _cell(nbytes, {name: times[i] for name, times in _TIMES.items()})
        for i, nbytes in enumerate((1 << 10, 1 << 20))
    ]
    return ["MEASURED on a machine", *tables.sweep(cells)]


def test_a_line_has_the_best_time_of_each_peer() -> None:
    root = ElementTree.fromstring(plots.sweep(_report(), []))
    panel = svg.Panel(title="", x_title="", y_title="", y_ticks=svg.decades(20, 4000), y_log=True)
    dots = [float(dot.get("cy", 0)) for dot in root.iter(f"{_SVG}circle")]
    expected = [panel.y(us) for us in (20, 1000, 2000, 4000)]  # hier, then Gloo
    assert dots == pytest.approx(expected, abs=0.06)


def test_a_picture_of_no_table_is_refused() -> None:
    with pytest.raises(SystemExit, match="no such table"):
        plots.sweep(_report(), ["16 ranks"])
    with pytest.raises(SystemExit, match="no rows"):
        plots.scaling(_report())


def test_the_kept_report_of_scaling_gives_a_bar_for_each_row(tmp_path: Path) -> None:
    report = max(RESULTS.glob("benchmarks_*.md"))
    rows = re.findall(r"^ +\d+ +(?:none|hier|stock).*%.*$", report.read_text(), re.MULTILINE)
    silent = sum("   none " in line for line in rows)  # exposes nothing by definition
    hidden = sum(line.count("%") == 2 for line in rows)
    plots.main(["scaling", str(report), str(tmp_path / "x.svg")])
    root = ElementTree.fromstring((tmp_path / "x.svg").read_text())
    bars = [bar for panel in root.iter(f"{_SVG}g") for bar in panel.iter(f"{_SVG}rect")]
    assert rows
    assert len(bars) == 2 * len(rows) - silent + hidden


def test_ticks_hold_all_values_and_are_round() -> None:
    assert svg.decades(15, 120) == [10.0, 100.0, 1000.0]
    assert svg.steps(78) == [0, 20, 40, 60, 80]
    for high in (0.3, 1, 7, 99, 1234):
        ticks = svg.steps(high)
        assert ticks[0] == 0
        assert ticks[-2] < high <= ticks[-1]
        assert 4 <= len(ticks) <= 8
