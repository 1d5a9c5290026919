"""The large-minibatch experiment runs, goes on with what is missing, and reports its rows."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.large_minibatch import command as large_minibatch
from benchmarks.large_minibatch.command import main, read_rows
from benchmarks.large_minibatch.grid import CPU, FIXED, GPU, GRADUAL, LONG, SMOKE, VARIANTS, Grid
from benchmarks.large_minibatch.report import write_report

TINY = replace(
    SMOKE, epochs=1, milestones=(0.5,), stages=({GRADUAL: (256,)}, {FIXED: (512,)}), seeds=(3,)
)


@pytest.mark.timeout(110)
def test_it_trains_what_is_missing_by_the_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(large_minibatch._GRIDS, "smoke", TINY)
    assert main(["--smoke", "--only=256", "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    assert main(["--smoke", "--out", str(tmp_path)]) == 0
    assert "1 of 2 runs to train" in capsys.readouterr().out
    first, second = rows = read_rows(tmp_path)
    assert (first["kn"], first["variant"], first["iterations"]) == (256, GRADUAL.name, 6)
    assert first["eta"] == pytest.approx(0.1)
    assert (second["kn"], second["variant"], second["iterations"]) == (512, FIXED.name, 3)
    assert second["eta"] == pytest.approx(0.1)
    assert all(0 < row["error"] < 1 for row in rows)
    assert (tmp_path / "report.svg").exists()


def _row(variant: str, kn: int, seed: int, error: float) -> dict[str, Any]:
    return {
        "name": f"{variant} {kn} {seed}", "variant": variant, "kn": kn, "seed": seed,
        "train_curve": [[1.0, 0.5], [1.5, 0.4 * error], [2.0, 0.6 * error]],
        "error": error, "diverged": False,
        "eta": 0.1, "iterations": 10, "cpu_seconds": 1.0, "commit": "0" * 40, "torch": "2",
        "cpu": "a machine", "argv": ["--batch=32"],
    }  # fmt: skip


def test_the_report_has_mean_and_deviation_over_seeds(drawn, tmp_path: Path) -> None:
    rows = [_row(GRADUAL.name, kn, s, 0.1 + s / 100) for kn in (256, 1024) for s in (0, 1, 2)]
    rows.append(_row(FIXED.name, 1024, 0, 0.4))
    write_report(rows, CPU, tmp_path / "found")
    text = (tmp_path / "found.md").read_text()
    assert (
        "| linear, gradual warmup | 1,024 | 0.1 | 10 | 3 | 11.00 +- 1.00 | 5.50 +- 0.50 |" in text
    )
    assert "| fixed eta | 1,024 | 0.1 | 10 | 1 | 40.00 | 20.00 |" in text
    assert "QUOTED" in text
    assert json.loads((tmp_path / "found.json").read_text()) == rows
    picture = ElementTree.fromstring((tmp_path / "found.svg").read_text())
    assert [values for name, values in drawn if name == GRADUAL.name] == [pytest.approx([11, 11])]
    assert [values for name, values in drawn if name == FIXED.name] == [pytest.approx([40])]
    curves = [values for name, values in drawn if not name]
    assert curves == [pytest.approx([50])] * 4  # in %, of whole windows; 256 and 1,024, both rules
    texts = {text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert {"1,024", GRADUAL.name, FIXED.name, "training curves at kn = 1,024"} <= texts


@pytest.mark.parametrize("grid", [CPU, LONG, GPU, SMOKE])
def test_every_run_keeps_n_and_has_a_name_of_its_own(grid: Grid) -> None:
    runs = list(grid.runs())
    assert len({run.name for run in runs}) == len(runs)
    assert {run.variant for run in runs} <= set(VARIANTS)
    for run in runs:
        argv = " ".join(grid.argv(run))
        assert "--batch=32" in argv
        assert int(re.findall(r"--workers-virtual=(\d+)", argv)[0]) * 32 == run.kn
    first = grid.epochs - grid.last + 1  # evaluation that the error of a run is made of
    assert first > grid.milestones[0]


def test_a_directory_without_rows_is_refused(tmp_path: Path, capsys) -> None:
    assert main(["--report", str(tmp_path)]) == 2
    assert "holds no finished run" in capsys.readouterr().err
