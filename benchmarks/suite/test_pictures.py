"""Pictures show what the runs say. Nothing is timed here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib.axes
import numpy as np
import pytest

from benchmarks.conftest import RESULTS, Report
from benchmarks.harness.layouts import Layout
from benchmarks.harness.measurements import Measurement
from benchmarks.harness.worlds import Round
from benchmarks.networks import at_scale
from benchmarks.report import pictures

_TIMES = {"hier": (20e-6, 1e-3), "gloo": (2e-3, 5e-3), "gloo-cubic": (3e-3, 4e-3)}  # 1 KiB, 1 MiB


def _measured(nbytes: int, times: dict[str, float]) -> Measurement:
    rounds = {name: [Round(np.array([seconds]), 0.0, 0)] for name, seconds in times.items()}
    return Measurement("sweep", Layout(2, 1), nbytes, rounds=rounds, absent={"mpich": "not here"})


@pytest.fixture
def run() -> dict[str, Any]:
    report = Report()
    report.measurements = [
        _measured(nbytes, {name: times[i] for name, times in _TIMES.items()})
        for i, nbytes in enumerate((1 << 10, 1 << 20))
    ]
    return json.loads(json.dumps(report.figures("a machine")))


def test_a_line_has_the_best_time_of_each_peer(run, drawn, tmp_path: Path) -> None:
    pictures.sweep(run, tmp_path / "x.svg")
    assert [name for name, _ in drawn] == ["hier", "Gloo"]
    assert drawn[0][1] == pytest.approx([20, 1000])
    assert drawn[1][1] == pytest.approx([2000, 4000])
    assert "MEASURED on a machine" in (tmp_path / "x.svg").read_text()


def test_a_peer_has_one_colour_where_another_is_absent(run, monkeypatch, tmp_path: Path) -> None:
    here = run["sweep"][0]
    players = {"hier": here["players"]["hier"], "impi": {"p50_us": 7.0}}
    run["sweep"].append({**here, "layout": "another", "players": players})
    run["sweep"][0]["players"]["mpich"] = run["sweep"][0]["players"]["impi"] = {"p50_us": 9.0}
    colours: dict[str, set[str]] = {}
    real = matplotlib.axes.Axes.plot

    def noted(axes, *values, **options):
        colours.setdefault(options["label"], set()).add(options["c"])
        return real(axes, *values, **options)

    monkeypatch.setattr(matplotlib.axes.Axes, "plot", noted)
    pictures.sweep(run, tmp_path / "x.svg")
    assert {name: len(found) for name, found in colours.items()} == dict.fromkeys(colours, 1)
    assert len(set(map(min, colours.values()))) == len(colours) == 4


def test_a_picture_of_nothing_is_refused(run, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no such sweep"):
        pictures.sweep(run, tmp_path / "x.svg", ["16 ranks"])
    with pytest.raises(SystemExit, match="no rows"):
        pictures.training(run, tmp_path / "x.svg")


def test_the_kept_run_gives_a_bar_for_each_row(drawn, tmp_path: Path) -> None:
    file = max(RESULTS.glob("benchmarks_*.json"))
    rows = json.loads(file.read_text())["training"]
    pictures.main(["training", str(file), str(tmp_path / "x.svg")])
    assert rows
    rates = [height for _, heights in drawn[:4] for height in heights]
    assert sorted(rates) == sorted(row["images_per_s"] for row in rows)
    exposed = [height for _, heights in drawn[4:] for height in heights]
    assert sorted(exposed) == sorted(
        max(0.0, row["exposed_ms"]) for row in rows if row["way"] != "none"
    )


@pytest.mark.parametrize(
    ("picture", "titles"),
    [("training", []), ("allreduce", ["4 ranks on one node", "4 ranks on nodes"])],
)
def test_the_kept_pictures_are_of_the_kept_run(picture: str, titles, tmp_path: Path) -> None:
    file = max(RESULTS.glob("benchmarks_*.json"))
    kind = {"allreduce": "sweep"}.get(picture, picture)
    pictures.main([kind, str(file), str(tmp_path / "x.svg"), *titles])
    kept = RESULTS / file.name.replace("benchmarks", picture).replace(".json", ".svg")
    assert _texts(kept) == _texts(tmp_path / "x.svg")


def _texts(file: Path) -> list[str]:
    found = ElementTree.fromstring(file.read_text()).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(text.itertext()).strip() for text in found]


def test_hosts_have_a_line_for_each_way_and_a_dashed_one_for_each_model(
    drawn, monkeypatch, tmp_path: Path
) -> None:
    styles: dict[str, str] = {}
    real = matplotlib.axes.Axes.plot

    def noted(axes, xs, ys, style, **options):
        styles[options["label"]] = style
        return real(axes, xs, ys, style, **options)

    monkeypatch.setattr(matplotlib.axes.Axes, "plot", noted)
    link = {"alpha": 1e-4, "beta": 1e-9, "gamma": 0.0, "overhead": 1e-6}
    one: dict[str, Any] = {
        "link": link,
        "ranks_per_core": 1,
        "iteration": 0.2318,
        "seconds": {"tensors, ring": [0.25], "Gloo, stock DDP": [0.3]},
    }
    pictures.hosts({"scale": 8, "hosts": {"2": one, "4": one}}, tmp_path / "x.svg")
    assert {name for name, style in styles.items() if "--" not in style} == set(one["seconds"])
    models = {name for name, style in styles.items() if "--" in style}
    assert len(models) == 3
    assert all(name.endswith("(SIMULATED)") for name in models)


def test_efficiency_falls_with_the_hosts_and_by_each_thing_that_goes_wrong() -> None:
    network = next(iter(at_scale.NETWORKS))
    ways = (at_scale.WAYS[0], at_scale.VARIED, at_scale.FAILING)
    found = {way: [at_scale.efficiency(n, network, way) for n in (1, 8, 64)] for way in ways}
    assert all(rates == sorted(rates, reverse=True) for rates in found.values())
    good, varied, failing = (found[way][-1] for way in ways)
    assert 1 > good > varied > failing > 0.8


def test_the_kept_picture_of_hosts_is_of_the_kept_run(tmp_path: Path) -> None:
    file = max(RESULTS.glob("hosts_*.json"))
    pictures.main(["hosts", str(file), str(tmp_path / "x.svg")])
    assert _texts(file.with_suffix(".svg")) == _texts(tmp_path / "x.svg")
