"""Metrics files of a resumed run, and where else metrics go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer.output.loggers import open_sinks
from trainer.output.metrics_files import MetricsFiles, lines_of


def line(iteration: int) -> dict:
    return {"kind": "train", "iteration": iteration, "epoch": iteration / 10, "loss": 1.0}


def test_a_resumed_run_takes_out_what_is_done_again(tmp_path: Path) -> None:
    with MetricsFiles(tmp_path) as files:
        for iteration in (1, 2, 3, 4):
            files.record(line(iteration))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')  # killed while writing
    with MetricsFiles(tmp_path, progress=0.2) as files:
        files.record(line(3))
    assert lines_of(tmp_path / "metrics.jsonl") == [line(1), line(2), line(3)]
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[1] for row in rows] == ["iteration", "1", "2", "3"]


@pytest.mark.parametrize("tested", [True, False])
def test_the_line_of_a_test_that_is_done_again_is_taken_out(tmp_path: Path, tested: bool) -> None:
    with MetricsFiles(tmp_path) as files:
        for kind, iteration in (("test", 10), ("train", 20), ("test", 20)):
            files.record({**line(iteration), "kind": kind})
    with MetricsFiles(tmp_path, progress=2.0, tested=tested) as files:
        assert files.has_last_test == tested
    kept = [found["kind"] for found in lines_of(tmp_path / "metrics.jsonl")]
    assert kept == ["test", "train", "test"][: 3 if tested else 2]


def test_a_new_run_begins_with_empty_files(tmp_path: Path) -> None:
    for _ in range(2):
        with MetricsFiles(tmp_path) as files:
            files.record(line(1))
    assert len(lines_of(tmp_path / "metrics.jsonl")) == 1


def test_tensorboard_reads_back_what_was_recorded(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="pip install 'hier-allreduce[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (sink,) = open_sinks(["tensorboard"], tmp_path, {"lr": 0.1}, first=None)
    for iteration in (4, 8):
        sink.record("train", {"iteration": iteration, "loss": 1 / iteration})
    sink.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert scalars == [(4, 0.25), (8, 0.125)]


def test_wandb_keeps_an_offline_run(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("wandb", reason="pip install 'hier-allreduce[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (sink,) = open_sinks(["wandb"], tmp_path, json.loads('{"lr": 0.1}'), first=None)
    sink.record("train", {"iteration": 4, "loss": 0.5})
    sink.close()
    assert list(tmp_path.rglob("*.wandb"))
