"""The run directory and the end table."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from run_metrics import SUMMARY, TEST, TRAIN

from trainer.config.options import Config
from trainer.output.end_table import node_layout, table
from trainer.output.run_directory import RunLog
from trainer.report.command import main


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with RunLog(tmp_path / "run", Config(), last_iteration=8) as log:
        log.train(TRAIN)
        log.tick(4)
        log.test(TEST)
        log.finish(SUMMARY)
    return tmp_path / "run"


def test_run_directory_is_complete(run: Path) -> None:
    files = {"config.toml", "env.json", "metrics.jsonl", "metrics.csv", "summary.json"}
    assert {file.name for file in run.iterdir()} == files


def test_metrics_are_the_same_in_both_files(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"kind": "train", **TRAIN}, {"kind": "test", **TEST}]
    with (run / "metrics.csv").open(newline="") as file:
        rows = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
    assert rows == [{name: str(value) for name, value in line.items()} for line in lines]


def test_metrics_are_on_disk_at_once(tmp_path: Path) -> None:
    with RunLog(tmp_path, Config(), last_iteration=8) as log:
        log.train(TRAIN)
        assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1
        assert (tmp_path / "metrics.csv").read_text().count("\n") == 2


def test_environment_names_versions_and_machine(run: Path) -> None:
    environment = json.loads((run / "env.json").read_text())
    for name in ("python", "torch", "numpy", "cpu", "cores", "kernel", "commit", "command"):
        assert name in environment
    assert environment["torch"]


def test_off_a_terminal_progress_is_plain_lines(run: Path, capsys) -> None:
    with RunLog(run.parent / "again", Config(), last_iteration=8) as log:
        log.train(TRAIN)
        log.tick(4)
    out = capsys.readouterr().out
    assert out == "iteration    4/8  lr 0.0500  loss 1.250  train error 50.0%  250 images/s\n"


def test_table_shows_result_time_traffic_and_plan() -> None:
    text = " ".join(table(SUMMARY).split())
    for part in (
        "test error 25.0% (2 of 8 images)",
        "images per second 1,234",
        "data 5.0%",
        "forward 25.0%",
        "backward 50.0%",
        "exposed communication 10.0%",
        "optimizer 7.5%",
        "by shared memory 10.0 MB, 1.2 MB an iteration (the busiest rank 16.0 MB)",
        "by network 8.0 MB, 1.0 MB an iteration what ran",
        "algorithm ring",
        "layout 2 nodes x 2 ranks",
        "94.1 MB of gradients in 24 buckets of up to 4,194,304 B",
    ):
        assert part in text


def test_table_shows_the_largest_bucket_that_ran() -> None:
    small = {"gradient_bytes": 79_816, "buckets": 1, "largest_bucket_bytes": 79_872}
    text = table({**SUMMARY, **small, "sent_bytes": {"network_bytes": [2500.0] * 4}})
    assert "79.8 kB of gradients in 1 bucket, the largest of 79,872 B" in text
    assert "by network              2.5 kB, 312 B an iteration" in text


def test_table_shows_what_auto_chose() -> None:
    text = table({**SUMMARY, "algo": "auto", "plan": "ring, for " + 20 * "reasons "})
    assert text.index("algorithm") < text.index("ring, for reasons") < text.index("layout")
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ([2, 2], "2 nodes x 2 ranks"),
        ([1], "1 node x 1 rank"),
        ([3, 2], "2 nodes of 3 + 2 ranks"),
        ([4], "1 node x 4 ranks"),
    ],
)
def test_layout_in_words(sizes: list[int], words: str) -> None:
    assert node_layout(sizes) == words


def test_report_prints_the_table_again(run: Path, capsys) -> None:
    capsys.readouterr()
    assert main([str(run)]) == 0
    assert table(SUMMARY) in capsys.readouterr().out


def test_report_refuses_an_unfinished_run(tmp_path: Path, capsys) -> None:
    assert main([str(tmp_path)]) == 2
    assert "not a run directory" in capsys.readouterr().err
