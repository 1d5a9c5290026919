"""Runs an example as its reader would: the script of a launcher, the program's file."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 100  # seconds for one example; a quiet machine takes 12

Run = Callable[..., str]


def run_example(launcher: str, program: str | Path, **environment: str) -> str:
    """Returns what all ranks printed; a program that fails or hangs fails the test."""
    command = ["bash", f"examples/launch/{launcher}", str(ROOT / "examples" / program)]
    env = os.environ | {"PYTHON": sys.executable, "MASTER_PORT": str(unused_port())}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])
    job = subprocess.Popen(
        command,
        cwd=ROOT,
        env=env | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, errors = job.communicate(timeout=DEADLINE)
    finally:
        end(job)
    assert job.returncode == 0, f"{' '.join(command)}: exit {job.returncode}\n{out}\n{errors}"
    return out


def end(job: subprocess.Popen[str]) -> None:
    """Ends what still runs; first in a way that lets torchrun end its ranks, in other sessions."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if job.poll() is None:
            os.killpg(job.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.communicate(timeout=5)


def unused_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(name="run_example", scope="session")
def run_example_fixture() -> Run:
    return run_example
