"""The main job, made small: real processes, the real backend, two workers as two nodes."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(400)

SMALL = ["--model=resnet18", "--batch=16", "--epochs=1", "--max-iterations=6", "--log-every=2"]
SMALL += ["--save-every=never"]  # tests of checkpoints are in test_resume.py


def run_job(*argv: str, launcher: tuple[str, ...] = (), deadline: float = 300):
    command = [sys.executable, "-m", *launcher, "trainer.run", *SMALL, *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=deadline, check=False)


def metrics(run: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory):
    """One job of two workers on two simulated nodes: its output and its run directory."""
    run = tmp_path_factory.mktemp("job") / "run"
    done = run_job("--workers=2", "--nodes=2", "--algo=halving_doubling", f"--out={run}")
    assert done.returncode == 0, done.stderr
    return done, run


def test_job_ends_with_the_table(finished) -> None:
    done, run = finished
    for part in ("test error", "images per second", "exposed communication", "by network",
                 "by shared memory", "halving_doubling", "2 nodes x 1 rank", str(run)):  # fmt: skip
        assert part in done.stdout


def test_metrics_cover_every_iteration(finished) -> None:
    _, run = finished
    lines = metrics(run, "train")
    assert [line["iteration"] for line in lines] == [2, 4, 6]
    assert all(0 < line["loss"] < 20 for line in lines)
    with (run / "metrics.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(lines) + 1


def test_evaluation_counted_each_image_once(finished) -> None:
    _, run = finished
    (line,) = metrics(run, "test")
    assert line["test_images"] == 261
    wrong = line["test_error"] * 261
    assert wrong == pytest.approx(round(wrong), abs=1e-6)


def test_each_rank_sent_the_gradients_over_the_network(finished) -> None:
    _, run = finished
    summary = json.loads((run / "summary.json").read_text())
    # Two nodes of one rank: an allreduce of b bytes sends b from each (2 (p - 1) / p b).
    expected = summary["iterations"] * summary["gradient_bytes"]
    for sent in summary["sent_bytes"]["network_bytes"]:
        assert 0.99 * expected <= sent <= 1.05 * expected


def test_time_shares_add_up(finished) -> None:
    _, run = finished
    summary = json.loads((run / "summary.json").read_text())
    assert sum(summary["phase_seconds"].values()) == pytest.approx(summary["training_seconds"])
    assert min(summary["phase_seconds"].values()) >= 0
    assert summary["training_seconds"] <= summary["elapsed_seconds"]


@pytest.mark.parametrize("size", ["0", "auto"])
def test_losses_do_not_depend_on_the_layout_or_the_buckets(finished, tmp_path, size) -> None:
    _, run = finished
    buckets = f"--bucket-bytes={size}"
    done = run_job("--workers=2", "--nodes=1", buckets, f"--out={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    ours, theirs = metrics(run, "train"), metrics(tmp_path / "run", "train")
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def test_job_runs_under_torchrun(finished, tmp_path) -> None:
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m")
    done = run_job("--nodes=2", f"--out={tmp_path / 'run'}", launcher=launcher)
    assert done.returncode == 0, done.stderr
    ours, theirs = metrics(finished[1], "train"), metrics(tmp_path / "run", "train")
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def test_a_worker_that_dies_ends_the_job_and_is_named(tmp_path) -> None:
    command = [sys.executable, "-m", "trainer.run", *SMALL, "--max-iterations=0"]
    job = subprocess.Popen(
        [*command, "--workers=2", "--epochs=50", f"--out={tmp_path / 'run'}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        lines = tmp_path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (lines.exists() and lines.read_text()):
            assert job.poll() is None
            assert time.monotonic() < deadline, "the job does not begin to train"
            time.sleep(0.05)
        workers = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        os.kill(int(workers[1]), signal.SIGKILL)
        _, errors = job.communicate(timeout=60)
    finally:
        if job.poll() is None:
            job.kill()
            job.communicate(timeout=60)
    assert job.returncode == 1
    assert "worker 1 of 2 was killed by SIGKILL" in errors
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
