"""Going on from checkpoints: real processes, killed and signalled, and the bits afterwards."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_checkpoints import differences, last

pytestmark = pytest.mark.timeout(400)

# 1,536 digits are 8 iterations of 2 x 96 an epoch; the first epoch is warmup.
SMALL = ["--model=resnet8", "--batch=96", "--epochs=2", "--log-every=1", "--threads=1"]
SMALL += ["--workers=2", "--deterministic", "--save-every=3"]

# The job; but rank 0 kills its launcher, and so all, when iteration KILL_AT is done.
JOB = """
import os, signal, sys, time
from trainer import run
from trainer.launch.local_processes import launch
if "RANK" in os.environ:
    from trainer.training.run_state import Job
    move_to = Job.move_to
    def move_and_perhaps_die(job, epoch, offset):
        move_to(job, epoch, offset)
        if job.comm.rank == 0 and str(job.iteration) == os.environ.get("KILL_AT"):
            job.saver.close()
            os.kill(int(os.environ["TRAINER_LAUNCHER"].split(":")[0]), signal.SIGKILL)
            time.sleep(60)
    Job.move_to = move_and_perhaps_die
else:
    run.launch = lambda config: launch(config, (sys.executable, __file__))
sys.exit(run.main())
"""


def run_job(folder: Path, *argv: str, kill_at: int = 0) -> subprocess.CompletedProcess[str]:
    script = folder / "job.py"
    script.write_text(JOB)
    return subprocess.run(
        [sys.executable, str(script), *SMALL, *argv],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "KILL_AT": str(kill_at)},
    )  # fmt: skip


def lines(run: Path) -> list[tuple]:
    """What does not depend on time: kind, iteration, loss, test error."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [tuple(x.get(k) for k in ("kind", "iteration", "loss", "test_error")) for x in found]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory):
    """A run killed in iteration 5, 9 and 14, gone on with each time: outputs and directory."""
    folder = tmp_path_factory.mktemp("killed")
    outputs = []
    for kill_at in (5, 9, 14, 0):
        done = run_job(folder, f"--out={folder / 'run'}", kill_at=kill_at)
        assert done.returncode == (-signal.SIGKILL if kill_at else 0), done.stderr
        outputs.append(done.stdout)
    return outputs, folder / "run"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, left alone."""
    folder = tmp_path_factory.mktemp("whole")
    done = run_job(folder, f"--out={folder / 'run'}")
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_a_killed_run_goes_on_inside_warmup_at_an_epochs_end_and_inside_an_epoch(killed) -> None:
    outputs, _ = killed
    assert "resumed" not in outputs[0]
    resumed = [re.search(r"epoch (\S+), iteration (\d+)", text).groups() for text in outputs[1:]]
    assert resumed == [("0.375", "3"), ("1", "8"), ("1.5", "12")]


def test_a_killed_run_ends_with_the_bits_of_one_left_alone(killed, whole) -> None:
    assert differences(last(killed[1]), last(whole)) == []


def test_metrics_of_a_killed_run_are_neither_lost_nor_twice(killed, whole) -> None:
    assert lines(killed[1]) == lines(whole)
    assert len(lines(whole)) == 16 + 2


def test_every_start_leaves_its_environment(killed) -> None:
    environment = json.loads((killed[1] / "env.json").read_text())
    assert "resumed after" in environment["resumed after"]["resumed after"]


def test_a_complete_run_is_not_trained_again(killed) -> None:
    _, run = killed
    before = lines(run)
    done = run_job(run.parent, f"--out={run}")
    assert done.returncode == 0, done.stderr
    assert lines(run) == before
    assert "test error" in done.stdout


def test_another_number_of_workers_goes_on_with_its_own_rate(whole, tmp_path) -> None:
    start = whole / "checkpoints" / "epoch_0001_image_000001344.pt"  # iteration 15 of 16
    out = tmp_path / "run"
    done = run_job(tmp_path, f"--resume={start}", f"--out={out}", "--workers=1")
    assert done.returncode == 0, done.stderr
    (line,) = (x for x in done.stdout.splitlines() if x.startswith("resumed from"))
    for part in ("iteration 30; 1 worker instead of 2: kn = 96", "the 192 images left",
                 "form (9)", "statistics of worker w mod 2"):  # fmt: skip
        assert part in line
    assert [x[1] for x in lines(out) if x[0] == "train"] == [31, 32]


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(whole, tmp_path) -> None:
    newest, before = sorted((whole / "checkpoints").glob("epoch*"), reverse=True)[:2]
    run = tmp_path / "run" / "checkpoints"
    run.mkdir(parents=True)
    (run / before.name).write_bytes(before.read_bytes())
    data = bytearray(newest.read_bytes())
    data[1000] ^= 1  # the facts are whole: only reading all of it tells
    (run / newest.name).write_bytes(data)
    done = run_job(tmp_path, f"--out={run.parent}", "--max-iterations=16")
    assert done.returncode == 0, done.stderr
    assert f"refused: {run / newest.name}: damaged" in done.stdout
    assert f"resumed from {run / before.name}" in done.stdout


def begin_long_run(out: Path) -> subprocess.Popen[str]:
    """A run of many epochs, once it has trained for some iterations."""
    before = len(lines(out)) if out.exists() else 0
    job = subprocess.Popen(
        [sys.executable, "-m", "trainer.run", *SMALL, "--epochs=500", f"--out={out}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() or len(lines(out)) < before + 3:
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline, "the job does not begin to train"
        time.sleep(0.05)
    return job


def test_a_signal_to_the_launcher_or_one_worker_saves_and_ends_all(tmp_path) -> None:
    out = tmp_path / "run"
    iterations = []
    for number, only_one in ((signal.SIGUSR1, False), (signal.SIGTERM, True)):
        job = begin_long_run(out)
        try:
            children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
            os.kill(int(children[1]) if only_one else job.pid, number)
            output, errors = job.communicate(timeout=60)
        finally:
            if job.poll() is None:
                job.kill()
                job.communicate(timeout=60)
        assert job.returncode == 75, errors
        assert "stopped by a signal, and saved" in output
        iterations.append(max(x[1] for x in lines(out)))
    assert f"iteration {iterations[0]}\n" in output  # the second went on from where the first was


def test_a_diverging_run_keeps_the_last_good_state(tmp_path) -> None:
    out = tmp_path / "run"
    done = run_job(tmp_path, f"--out={out}", "--lr=1e12", "--warmup-epochs=0", "--save-every=1")
    assert done.returncode == 1
    assert done.stderr.count("trainer: the loss of rank ") == 1
    assert "lower --lr or raise --warmup-epochs" in done.stderr
    kept = {path.name for path in (out / "checkpoints").iterdir()}
    assert kept == {"bad_loss.pt", "last.pt", "epoch_0000_image_000000000.pt"}
    assert all(t.isfinite().all() for t in last(out)["model"].values())
