"""A run that a signal ended prints the command that goes on with it, and that one does."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer.launch.resume_command import command_again, with_directory

pytestmark = pytest.mark.timeout(900)

SMALL = ["--model=resnet8", "--batch=96", "--epochs=500", "--log-every=1", "--threads=1"]
JOB = ["-m", "trainer.run"]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python -m trainer.run", "python -m trainer.run"),
        ("python -m trainer.run --out a --lr 1", "python -m trainer.run --lr 1"),
        ("python -m trainer.run --out=a --out=b", "python -m trainer.run"),
        ("x -m trainer.run --resume old/run --lr=1", "x -m trainer.run --lr=1"),
        ("x -m trainer.run --resume=none", "x -m trainer.run"),
        ("x -m trainer.run --resume strict", "x -m trainer.run --resume=strict"),
        ("x -m trainer.run --resume=auto", "x -m trainer.run --resume=auto"),
        (
            "torchrun --nproc-per-node 4 -m trainer.run --preset p",
            "torchrun --nproc-per-node 4 -m trainer.run --preset p",
        ),
    ],
)
def test_the_directory_is_added_and_other_beginnings_go(command: str, expected: str) -> None:
    found = with_directory(shlex.split(command), "runs/now")
    assert found == [*shlex.split(expected), "--out=runs/now"]


PROGRAM = (
    "from trainer.launch.resume_command import command_again; print(command_again('my runs/$x'))"
)
ODD = ["trainer.run", "--data-dir=/my photos", "--log=*"]


def printed(environ: dict[str, str]) -> str:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *ODD],
        capture_output=True, text=True, check=True, env={**os.environ, **environ},
    ).stdout  # fmt: skip


def test_the_command_is_quoted_for_the_shell() -> None:
    assert shlex.split(printed({}))[1:] == ["-c", PROGRAM, *ODD, "--out=my runs/$x"]


def test_a_launcher_that_is_not_an_ancestor_is_told_of() -> None:
    text = printed({"RANK": "0"})
    assert text.endswith("  # by the launcher that began it\n")
    assert shlex.split(text, comments=True)[-1] == "--out=my runs/$x"


def test_a_program_of_another_name_is_told_as_it_was_started() -> None:
    assert shlex.split(command_again("a"))[-2:] == [sys.orig_argv[-1], "--out=a"]


def stopped(command: list[str], folder: Path, *, first: int) -> str:
    """What a job prints that got SIGTERM after some iterations beyond `first`."""
    job = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while max(iterations(folder), default=-1) < first + 3:
            assert job.poll() is None, job.communicate()
            assert time.monotonic() < deadline, "the job does not begin to train"
            time.sleep(0.05)
        os.kill(job.pid, signal.SIGTERM)
        output, errors = job.communicate(timeout=200)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
            job.communicate(timeout=60)
    assert "stopped by a signal, and saved" in output, errors
    return output


def iterations(folder: Path) -> list[int]:
    files = list(folder.glob("runs/*/metrics.jsonl"))
    assert len(files) <= 1, "a second run directory"
    lines = [line for file in files for line in file.read_text().split("\n")[:-1]]
    return [json.loads(line)["iteration"] for line in lines]


@pytest.mark.parametrize("launcher", ["ours", "torchrun"])
def test_what_is_printed_goes_on_with_the_run(tmp_path: Path, launcher: str) -> None:
    begin = [sys.executable, *JOB, *SMALL, "--workers=2"]
    if launcher == "torchrun":
        begin = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", *JOB, *SMALL]
    output = stopped(begin, tmp_path, first=0)
    before = max(iterations(tmp_path))
    (command,) = (line for line in output.splitlines() if "--out=runs/" in line)
    words = shlex.split(command)
    assert words[: len(begin)] == begin
    again = stopped(words, tmp_path, first=before)  # fails if there is a second directory
    assert f"iteration {before}\n" in again
