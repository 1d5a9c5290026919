"""`trainer.report`: final errors, seeds, scaling, and a picture that is one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from trainer.config.files import to_toml
from trainer.config.options import Config
from trainer.output.end_table import PHASES
from trainer.report.command import main
from trainer.report.runs import NoRun, by_seed, final_error, has_median, read_run, scaling


def make_run(folder: Path, errors: list[float], rate: float = 100.0, **options) -> Path:
    folder.mkdir()
    (folder / "config.toml").write_text(to_toml(dataclasses.replace(Config(), **options)))
    lines = []
    for epoch, error in enumerate(errors, 1):
        train = {
            "kind": "train", "iteration": epoch, "epoch": float(epoch), "eta": 0.1,
            "train_error": error, "images_per_second": rate,
            **{f"{phase}_seconds": 0.1 for phase in PHASES},
        }  # fmt: skip
        lines += [train, {"kind": "test", "epoch": float(epoch), "test_error": error}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_the_final_error_is_the_median_of_the_last_five_epochs(tmp_path: Path, capsys) -> None:
    folder = make_run(tmp_path / "a", [0.9] * 18 + [0.5, 0.1, 0.4, 0.3, 0.2])
    run = read_run(folder)
    assert has_median(run)
    assert final_error(run) == 0.3
    assert main([str(folder)]) == 0
    assert "final error 30.00% (median of the last 5 epochs)" in capsys.readouterr().out


@pytest.mark.parametrize("epochs", [1, 5, 19])
def test_the_headline_of_a_short_run_is_its_last_error(tmp_path: Path, capsys, epochs: int) -> None:
    folder = make_run(tmp_path / "a", [0.9] * (epochs - 1) + [0.034])
    assert final_error(read_run(folder)) == 0.034
    assert main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "last test 3.40%" in out
    assert "90.00%" not in out


def test_seeds_are_grouped_and_named_by_what_sets_them_apart(tmp_path: Path) -> None:
    runs = [
        read_run(make_run(tmp_path / f"{lr}-{seed}", [lr + seed], lr=lr, seed=seed))
        for lr in (0.1, 0.5)
        for seed in (0, 1)
    ]
    assert by_seed(runs) == [("lr 0.1", [0.1, 1.1]), ("lr 0.5", [0.5, 1.5])]


def test_efficiency_is_against_the_fewest_workers(tmp_path: Path) -> None:
    rates = {2: 100.0, 4: 180.0, 8: 300.0}
    runs = [
        read_run(make_run(tmp_path / str(k), [0.5], r, workers=k, nodes=k // 2, seed=k))
        for k, r in rates.items()
    ]
    assert scaling(runs) == [("all runs", [(2, 100.0, 1.0), (4, 180.0, 0.9), (8, 300.0, 0.75)])]


def test_only_runs_that_differ_in_workers_alone_scale(tmp_path: Path, capsys) -> None:
    def runs(*kinds: tuple[str, int, float]) -> list[Path]:
        return [
            make_run(tmp_path / f"{model}-{k}-{rate}", [0.5], rate, model=model, workers=k)
            for model, k, rate in kinds
        ]

    two = runs(("resnet8", 4, 400.0), ("resnet8", 2, 250.0), ("resnet18", 2, 76.0))
    assert scaling([read_run(path) for path in two]) == [
        ("model resnet8", [(2, 250.0, 1.0), (4, 400.0, 0.8)])
    ]
    assert main([str(path) for path in two]) == 0
    assert "model resnet8\nworkers" in capsys.readouterr().out
    unlike = runs(("resnet8", 8, 400.0), ("resnet18", 4, 250.0))
    assert scaling([read_run(path) for path in unlike]) == []
    assert main([str(path) for path in unlike]) == 0
    assert "efficiency" not in capsys.readouterr().out


def test_a_run_of_before_an_option_counts_with_its_default(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / str(k), [0.5], 100.0 * k, workers=k) for k in (1, 2)]
    config = folders[0] / "config.toml"
    lines = [line for line in config.read_text().splitlines() if "label_smoothing" not in line]
    config.write_text("\n".join(lines))
    assert len(scaling([read_run(folder) for folder in folders])) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_bad_summary_is_as_good_as_none(tmp_path: Path, capsys, content: str) -> None:
    run = make_run(tmp_path / "a", [0.5, 0.4])
    (run / "summary.json").write_text(content)
    assert read_run(run).summary is None
    assert main([str(run)]) == 0
    assert "not complete, epoch 2" in capsys.readouterr().out


def test_a_line_that_a_killed_run_cut_off_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", [0.5, 0.4])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tr')
    assert len(read_run(run).train) == 2


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_several_runs_are_compared_and_drawn(tmp_path: Path, capsys, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    runs = [str(make_run(tmp_path / str(k), [0.5, 0.25], workers=k)) for k in (1, 2)]
    picture = tmp_path / f"runs{suffix}"
    assert main([*runs, "--plot", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "last test 25.00%" in out
    assert "efficiency" in out
    begin = {".png": b"\x89PNG", ".svg": b"<?xml"}[suffix]
    assert picture.read_bytes().startswith(begin)


def test_no_run_is_refused_in_one_line(tmp_path: Path, capsys) -> None:
    with pytest.raises(NoRun):
        read_run(tmp_path)
    assert main([str(tmp_path)]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"trainer.report: {tmp_path}: not a run directory")
    assert errors.count("\n") == 1


def test_input_says_what_gpus_need(capsys) -> None:
    assert main(["input", "--gpus", "256", "--rate", "3000"]) == 0
    assert "256 GPUs x 3,000 images/s = 768,000 images/s" in capsys.readouterr().out
