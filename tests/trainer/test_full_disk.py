"""A full disk: the run goes on, its results are shown, and what could not be written is told."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_metrics import SUMMARY, TEST, TRAIN

from trainer.config.options import Config
from trainer.output.end_table import table
from trainer.output.files import GrowingFile, write_whole
from trainer.output.metrics_files import MetricsFiles, lines_of
from trainer.output.run_directory import RunLog

BYTES = 1 << 18


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    if os.geteuid():
        pytest.skip("only root can mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={BYTES}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Takes all the room that is left."""
    path = disk / "ballast"
    with path.open("ab", buffering=0) as file:
        try:
            while file.write(bytes(512)):
                pass
        except OSError:
            return path
    raise AssertionError("not full")


def test_the_end_table_is_shown_and_each_lost_file_named(disk: Path, capsys) -> None:
    run = disk / "run"
    with RunLog(run, Config(), last_iteration=8) as log:
        log.train(TRAIN)
        fill(disk)
        log.test(TEST)
        log.finish(SUMMARY)
    out = capsys.readouterr().out
    assert table(SUMMARY) in out
    assert f"{run}/summary.json could not be written (No space left on device)" in out
    assert out.index("result") < out.index("summary.json")
    assert out.count("No space left") <= 3  # one line for each file
    names = {file.name for file in run.iterdir()}
    assert names == {"config.toml", "env.json", "metrics.jsonl", "metrics.csv"}


def test_a_run_that_begins_on_a_full_disk_is_shown_all_the_same(disk: Path, capsys) -> None:
    (run := disk / "run").mkdir()
    fill(disk)
    with RunLog(run, Config(), last_iteration=8) as log:
        for _ in range(3):
            log.train(TRAIN)
        log.finish(SUMMARY)
    out = capsys.readouterr().out
    assert table(SUMMARY) in out
    for name in ("config.toml", "env.json", "metrics.jsonl", "metrics.csv", "summary.json"):
        told = [line for line in out.splitlines() if f"/{name} " in line and "No space" in line]
        assert len(told) == 1, name
        assert not (run / name).exists() or name.startswith("metrics")


def test_metrics_are_whole_again_once_there_is_room(disk: Path) -> None:
    said: list[str] = []
    with MetricsFiles(disk, say=said.append) as files:
        files.record({"kind": "train", **TRAIN})
        ballast = fill(disk)
        for number in range(120):  # more than what is left of a page
            files.record({"kind": "train", **TRAIN, "iteration": number})
        assert len(said) == 2
        ballast.unlink()
        files.record({"kind": "test", **TEST})
    assert len(lines_of(disk / "metrics.jsonl")) == 122
    with (disk / "metrics.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 122
    assert len(said) == 2


def test_what_is_never_written_is_told_at_the_end(disk: Path) -> None:
    said: list[str] = []
    with GrowingFile(disk / "a.txt", "head\n", said.append) as file:
        fill(disk)
        file.add("x" * 5000)
    assert len(said) == 2
    assert said[0].startswith(f"{disk}/a.txt cannot be written (No space left on device)")
    assert said[1].startswith(f"{disk}/a.txt: its last ")


def test_a_resumed_run_needs_no_room_to_cut_its_metrics(disk: Path) -> None:
    lines = [{"kind": "train", **TRAIN, "epoch": epoch} for epoch in (0.5, 1.0, 1.5)]
    with MetricsFiles(disk) as files:
        for line in lines:
            files.record(line)
    fill(disk)
    said: list[str] = []
    with MetricsFiles(disk, progress=1.0, say=said.append):
        pass
    assert said == []
    assert lines_of(disk / "metrics.jsonl") == lines[:2]
    with (disk / "metrics.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0.5", "1.0"]


def test_lines_that_only_one_file_has_are_made_equal(tmp_path: Path) -> None:
    lines = [{"kind": "train", **TRAIN, "epoch": epoch} for epoch in (0.5, 1.0)]
    with MetricsFiles(tmp_path) as files:
        for line in lines:
            files.record(line)
    table = tmp_path / "metrics.csv"
    table.write_text(table.read_text().split("\n")[0] + "\ntrain,4,0.")  # killed in between
    with MetricsFiles(tmp_path, progress=1.0):
        pass
    with table.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 2


def test_a_file_is_written_whole_or_stays_as_it_was(disk: Path) -> None:
    write_whole(disk / "a", b"old")
    fill(disk)
    with pytest.raises(OSError, match="No space left"):
        write_whole(disk / "a", bytes(5000))
    assert (disk / "a").read_bytes() == b"old"
    assert {file.name for file in disk.iterdir()} == {"a", "ballast"}


@pytest.mark.timeout(400)
def test_a_job_on_a_disk_that_is_too_small_comes_to_its_end(disk: Path) -> None:
    out = disk / "run"  # a checkpoint has some 330 kB
    done = subprocess.run(
        [sys.executable, "-m", "trainer.run", "--model=resnet8", "--batch=96", "--workers=2",
         "--threads=1", "--epochs=1", "--log-every=1", f"--out={out}"],
        capture_output=True, text=True, timeout=360, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "could not be written (No space left on device)" in done.stdout
    assert "Traceback" not in done.stderr
    assert done.stdout.index("images per second") > 0
    assert json.loads((out / "summary.json").read_text())["iterations"] == 8
