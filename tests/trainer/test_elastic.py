"""--elastic: real workers are killed where the test says, and the others go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from run_checkpoints import differences, last

pytestmark = pytest.mark.timeout(400)

# 1,536 digits are 4 iterations of 4 x 96 an epoch. All that a checkpoint can hold is there.
SMALL = ["--model=resnet8", "--batch=96", "--epochs=2", "--log-every=1", "--threads=1"]
SMALL += ["--workers=4", "--deterministic", "--ema=0.9", "--sgd-form=absorbed", "--timeout=60"]

# The job; but workers die by SIGKILL in the calls that KILLS names, as 3@sound:5 for worker 3 in
# its call of iteration 5, or for functions without one in their n-th call. BEHIND names workers
# that lose the answer of the call in which another one dies. COPY keeps all checkpoints.
JOB = """
import dataclasses, itertools, os, shutil, signal, sys, time
from pathlib import Path
from trainer import run
from trainer.launch import local_processes
from trainer.launch.local_processes import launch

def die():
    if str(first) in os.environ.get("HANG", ""):
        os.kill(os.getpid(), signal.SIGSTOP)
    if first == 0 and "ASK" in os.environ:
        os.kill(os.getppid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGKILL)

def fatal(place, name):
    function, calls = getattr(place, name), itertools.count()
    def call(*arguments, **named):
        if f"{first}@{name}:{next(calls)}" in kills:
            die()
        return function(*arguments, **named)
    setattr(place, name, call)

def sound(guard, iteration):
    dies = [f"{worker}@sound:{iteration}" in kills for worker in range(4)]
    if dies[first] and not behind:
        die()
    verdict = agree_that_it_is_sound(guard, iteration)
    if any(dies) and behind:
        (folder / f"heard-{first}").touch()
        while len(list(folder.glob("heard-?"))) < 4:  # the test has a deadline
            time.sleep(0.01)
        if dies[first]:
            die()
        if first in behind:
            guard.under_way = True
            guard._comm.abort("as if the answer had not come")
            raise AbortedError("as if the answer had not come")
    return verdict

if "RANK" in os.environ:
    first, kills = int(os.environ["RANK"]), os.environ["KILLS"].split(",")
    behind = [int(w) for w in os.environ["BEHIND"].split(",") if w]
    from allreduce import AbortedError
    from trainer.checkpoint.file import Checkpoints
    from trainer.launch import members
    from trainer.output.run_directory import RunLog
    from trainer.training import elastic, evaluation, loop, loss_guard
    folder = Path(__file__).parent
    agree_that_it_is_sound = loss_guard.Guard.sound
    loss_guard.Guard.sound = sound
    fatal(evaluation, "sum_over_workers")
    fatal(elastic, "agree")
    fatal(RunLog, "test")
    fatal(RunLog, "finish")
    fatal(members.Members, "join")
    meet = members.meet
    members.meet = lambda config: meet(dataclasses.replace(config, timeout=60.0))
    if "COPY" in os.environ:
        add = Checkpoints.add
        def add_and_copy(*arguments, **named):
            path = add(*arguments, **named)
            shutil.copy(path, os.environ["COPY"])
            return path
        Checkpoints.add = add_and_copy
else:
    if "HANG" in os.environ:
        local_processes._SAVING = 3.0  # seconds until one that hangs is stopped
    run.launch = lambda config: launch(config, (sys.executable, __file__))
sys.exit(run.main())
"""


def run_job(folder: Path, *argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
    script = folder / "job.py"
    script.write_text(JOB)
    return subprocess.run(
        [sys.executable, str(script), *SMALL, *argv],
        capture_output=True, text=True, timeout=180, check=False,
        env={**os.environ, "KILLS": "", "BEHIND": "", **variables},
    )  # fmt: skip


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of all iterations of an elastic run in which nobody dies."""
    folder = tmp_path_factory.mktemp("states")
    argv = [f"--out={folder / 'run'}", "--save-every=1", "--elastic"]
    done = run_job(folder, *argv, COPY=str(folder))
    assert (done.returncode, done.stderr) == (0, "")
    return folder


@pytest.mark.parametrize(("behind", "image"), [("", 384), ("1,2", 768)])
def test_the_others_end_with_the_bits_of_a_run_resumed_with_three(
    states, tmp_path, behind: str, image: int
) -> None:
    """Also where worker 0 alone has made the update of iteration 5, in which worker 3 dies."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    killed = run_job(tmp_path, f"--out={ours}", "--elastic", KILLS="3@sound:5", BEHIND=behind)
    assert killed.returncode == 0, killed.stderr
    assert "worker 3 of 4 was killed by SIGKILL" in killed.stderr
    assert "trainer: worker 3 died after " in killed.stderr
    died = 6 if behind else 5
    assert f"worker 3 was lost in iteration {died}; 3 workers go on from iteration" in killed.stdout
    start = states / f"epoch_0001_image_{image:09d}.pt"
    resumed = run_job(tmp_path, f"--resume={start}", f"--out={theirs}", "--workers=3")
    assert resumed.returncode == 0, resumed.stderr
    assert differences(last(ours), last(theirs)) == []


def test_rank_0_and_another_die_at_once_while_a_signal_asks_to_save(tmp_path) -> None:
    run = tmp_path / "run"
    done = run_job(tmp_path, f"--out={run}", "--elastic", KILLS="0@sound:5,2@sound:5", ASK="")
    assert done.returncode == 75, done.stderr
    assert "workers 0, 2 were lost in iteration 5; 2 workers go on" in done.stdout
    assert "stopped by a signal, and saved" in done.stdout
    assert len(last(run)["workers"]["random"]) == 2 * 3


def test_deaths_in_evaluation_in_recovery_and_in_saving_leave_one_that_ends_the_run(
    tmp_path,
) -> None:
    """Rank 0 dies before it writes the line of a test, while the others save what they tested."""
    run = tmp_path / "run"
    kills = "1@sum_over_workers:0,2@agree:0,0@test:1"
    done = run_job(tmp_path, f"--out={run}", "--elastic", KILLS=kills)
    assert done.returncode == 0, done.stderr
    assert "workers 1, 2 were lost in iteration 4; 2 workers go on" in done.stdout
    assert "worker 0 was lost in iteration 16; 1 worker goes on" in done.stdout
    assert done.stdout.count("run directory:") == 2  # at the begin, and after the end table
    assert [line["epoch"] for line in lines(run) if line["kind"] == "test"] == [1, 2]
    epochs = [line["epoch"] for line in lines(run)]
    assert epochs == sorted(epochs)
    assert json.loads((run / "summary.json").read_text())["workers"] == 1
    assert not list((run / "checkpoints").glob(".*"))
    assert all(tensor.isfinite().all() for tensor in last(run)["model"].values())


def test_one_hangs_another_dies_while_they_connect_and_rank_0_at_the_very_end(tmp_path) -> None:
    run = tmp_path / "run"
    argv = [f"--out={run}", "--elastic", "--timeout=5", "--epochs=1"]
    done = run_job(tmp_path, *argv, KILLS="2@sound:2,3@join:0,0@finish:0", HANG="2")
    assert done.returncode == 0, done.stderr
    assert "workers 2, 3 were lost in iteration 2; 2 workers go on" in done.stdout
    assert "worker 2 of 4 did not answer, and was stopped; the others go on" in done.stderr
    told = done.stderr.splitlines()[-1]
    for words in ("worker 3 died after ", "worker 0 died after ", "worker 2 was stopped after "):
        assert words in told
    assert json.loads((run / "summary.json").read_text())["workers"] == 1


def test_it_is_refused_where_others_start_the_workers(tmp_path) -> None:
    for argv, environ in ((["--machines=2", "--master=a:1"], {}), ([], {"RANK": "0"})):
        job = {"WORLD_SIZE": "4", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"} if environ else {}
        done = run_job(tmp_path, "--elastic", *argv, **environ, **job)
        assert done.returncode == 2
        assert done.stderr.startswith("trainer: --elastic: ")
        assert done.stderr.count("\n") == 1
