"""A machine or process of the job that never comes is named by all that have come."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(600)

MEET = """
import os, sys
from trainer.config.command_line import parse
from trainer.launch.local_processes import run_worker
from trainer.launch.rendezvous import meet
config = parse(sys.argv[1:], {})
def work():
    store = meet(config)
    print("met", store is not None)
    if os.environ["RANK"] == "0":
        store.wait(["done"])  # the store lives here
    else:
        store.set("done", "")
    return 0
sys.exit(run_worker(work))
"""
JOB = ["--workers=6", "--machines=3", "--timeout=30", "--master=localhost:1"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def meet(ranks: list[int], *argv: str, world_size: int = 6) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of these ranks of a job."""
    environ = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
               "WORLD_SIZE": str(world_size)}  # fmt: skip
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", MEET, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env={**environ, "RANK": str(rank)},
        )
        for rank in ranks
    ]  # fmt: skip
    try:
        texts = [job.communicate(timeout=400) for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    return [(job.returncode, *text) for job, text in zip(jobs, texts, strict=True)]


def test_all_that_come_meet() -> None:
    assert meet([0, 1], "--workers=2", world_size=2) == [(0, "met True\n", "")] * 2


def test_a_machine_that_never_comes_is_named_by_all_others() -> None:
    found = meet([0, 1, 4, 5], *JOB)
    assert [code for code, _, _ in found] == [3] * 4
    for rank, (_, _, errors) in zip((0, 1, 4, 5), found, strict=True):
        assert errors.startswith(
            f"trainer: rank {rank}: machine 1 of 3 (ranks 2, 3) did not come to 127.0.0.1:"
        )
        assert "start the command there with --machine 1" in errors
        assert "Traceback" not in errors


def test_a_process_of_another_launcher_is_named_by_its_rank() -> None:
    ((code, _, errors),) = meet([0], "--workers=2", "--timeout=3", world_size=2)
    assert code == 3
    assert "rank 1 did not come to 127.0.0.1:" in errors


def test_machine_0_is_named_where_it_never_comes() -> None:
    ((code, _, errors),) = meet([2], *JOB[:2], "--timeout=3", "--master=localhost:1")
    assert code == 3
    assert "rank 2: machine 0 does not answer at 127.0.0.1:" in errors
    assert errors.splitlines()[-1].startswith("trainer: ")


def test_a_job_of_two_machines_names_the_one_that_is_missing(tmp_path: Path) -> None:
    argv = ["--model=resnet8", "--workers=4", "--machines=2", "--timeout=30", "--nodes=2"]
    done = subprocess.run(
        [sys.executable, "-m", "trainer.run", *argv, f"--master=127.0.0.1:{free_port()}",
         f"--out={tmp_path / 'run'}"],
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "machine 1 of 2 (ranks 2, 3) did not come" in done.stderr
    assert "Traceback" not in done.stderr
