"""Runs the programs of tests/torch/programs, one process per rank, once for each layout.

A torch process takes seconds to start, so a program has many checks: functions check_<behaviour>,
each of which is a test of its own here. Its ranks are forks of a process that has torch already,
or processes of their own in the layouts that a module calls APART.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fork_server import Forked, ForkServer
from torch_release import torch_release

from allreduce.commands import native_build

PROGRAMS = Path(__file__).parent / "programs"
ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 90  # seconds for one launch
_STREAMS_OF_ANY_DEVICE = (2, 13)  # the release of torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How many ranks, and on how many (pretended) nodes."""

    ranks: int
    nodes: int

    def __str__(self) -> str:
        return f"{self.ranks}on{self.nodes}"


def environment_of_all(more: dict[str, str]) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, **more, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def environment_of(layout: Layout, rank: int, folder: Path, more: dict[str, str]) -> dict[str, str]:
    numbers = {"RANK": rank, "WORLD_SIZE": layout.ranks, "ALLREDUCE_NODES": layout.nodes}
    own = {name: str(number) for name, number in numbers.items()}
    return {**environment_of_all(more), **own, "FOLDER": str(folder)}


def start(program: str, layout: Layout, folder: Path, **more: str) -> list[subprocess.Popen]:
    """Starts all ranks of a program, each anew; their output goes to rank<r>.log in `folder`."""
    processes = []
    for rank in range(layout.ranks):
        env = environment_of(layout, rank, folder, more)
        with (folder / f"rank{rank}.log").open("w") as log:
            command = [sys.executable, "-X", "faulthandler", str(PROGRAMS / program)]
            processes.append(subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=folder))
    return processes


def finish(
    processes: list[subprocess.Popen] | list[Forked], folder: Path, deadline: float = DEADLINE
) -> str:
    """Waits for all ranks, kills those that are late, and returns what they wrote."""
    until = time.monotonic() + deadline
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - time.monotonic()))
    late = [process for process in processes if process.poll() is None]
    for process in late:
        process.send_signal(signal.SIGABRT)  # faulthandler prints where it hangs
    for process in late:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        process.wait(5)
    logs = sorted(folder.glob("rank*.log"))
    return "\n".join(f"--- {log.name}\n{log.read_text()}" for log in logs)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "check" in metafunc.fixturenames:
        text = (PROGRAMS / metafunc.module.PROGRAM).read_text()
        names = re.findall(r"^def check_(\w+)", text, re.MULTILINE)
        layouts = [Layout(ranks=ranks, nodes=nodes) for ranks, nodes in metafunc.module.LAYOUTS]
        metafunc.parametrize("outcomes", layouts, indirect=True, ids=str, scope="module")
        metafunc.parametrize("check", names)


@pytest.fixture(scope="session")
def backend() -> None:
    """Compiles the backend if it is not built or out of date, rather than in a test's time."""
    stamp = ROOT / "allreduce/torch/_backend.json"
    wanted = native_build.backend_hash(native_build.csrc_dir())
    if not stamp.exists() or json.loads(stamp.read_text())["sources"] != wanted:
        load = "from allreduce.torch.backend.load import load; load()"
        subprocess.run([sys.executable, "-c", load], cwd=ROOT, timeout=100, check=True)


@pytest.fixture(scope="session")
def cpu_device(backend: None) -> None:
    """Compiles the device of cpu_device.cc, unless it is up to date."""
    release = torch_release()
    if release < _STREAMS_OF_ANY_DEVICE:
        pytest.skip(f"torch {release[0]}.{release[1]} tells the streams of CUDA's devices alone")
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    build = [sys.executable, str(PROGRAMS / "cpu_device.py")]
    subprocess.run(build, cwd=ROOT, env=environment, timeout=300, check=True)


@pytest.fixture(scope="session")
def fork(backend: None) -> Iterator[Callable[..., list[Forked]]]:
    """Starts all ranks of a program as `start` does, but as forks of a process that has torch.

    There is such a process for each set of further variables, as some are read with torch.
    """
    servers: dict[frozenset[tuple[str, str]], ForkServer] = {}

    def fork_ranks(program: str, layout: Layout, folder: Path, **more: str) -> list[Forked]:
        key = frozenset(more.items())
        if key not in servers:
            modules = ["torch._dynamo", "allreduce.torch"]
            servers[key] = ForkServer(modules, environment_of_all(more))
            stack.callback(servers[key].close)
        return [
            servers[key].start(
                PROGRAMS / program,
                environment_of(layout, rank, folder, more),
                folder / f"rank{rank}.log",
            )
            for rank in range(layout.ranks)
        ]

    with contextlib.ExitStack() as stack:
        yield fork_ranks


@pytest.fixture(scope="module")
def outcomes(
    fork: Callable[..., list[Forked]],
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[list[dict[str, str]], str]:
    """For each rank the checks that ran with their errors ("" if none), and all output."""
    folder = tmp_path_factory.mktemp("ranks")
    layout, more = request.param, getattr(request.module, "ENVIRONMENT", {})
    apart = (layout.ranks, layout.nodes) in getattr(request.module, "APART", ())
    log = finish((start if apart else fork)(request.module.PROGRAM, layout, folder, **more), folder)
    found = [folder / f"rank{rank}.json" for rank in range(layout.ranks)]
    return [json.loads(file.read_text()) if file.exists() else {} for file in found], log


def assert_passed(check: str, outcomes: tuple[list[dict[str, str]], str]) -> None:
    ranks, log = outcomes
    errors = [results.get(check, "did not run") for results in ranks]
    if any(errors):
        told = "\n".join(f"rank {rank}: {error}" for rank, error in enumerate(errors) if error)
        pytest.fail(f"{told}\n{log[-8000:]}", pytrace=False)


@pytest.fixture(name="assert_passed")
def assert_passed_fixture():
    return assert_passed


@pytest.fixture(name="run_forked")
def run_forked_fixture(fork: Callable[..., list[Forked]], tmp_path: Path):
    """Runs a program to its end as `outcomes` does, and returns what its ranks wrote."""

    def run(program: str, ranks: int, nodes: int = 1, deadline: float = DEADLINE) -> str:
        layout = Layout(ranks=ranks, nodes=nodes)
        return finish(fork(program, layout, tmp_path), tmp_path, deadline)

    return run


@pytest.fixture(name="launch")
def launch_fixture(backend: None, tmp_path: Path):
    """Returns (start, finish) bound to a folder of this test."""

    def begin(program: str, ranks: int, nodes: int = 1, **environment: str):
        return start(program, Layout(ranks=ranks, nodes=nodes), tmp_path, **environment)

    def end(processes: list[subprocess.Popen], deadline: float = DEADLINE) -> str:
        return finish(processes, tmp_path, deadline)

    return begin, end
