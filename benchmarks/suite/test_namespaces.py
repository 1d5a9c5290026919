"""Hosts in network namespaces keep their rate, and leave nothing behind. Nothing is timed here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.harness.emulated_worlds import EmulatedWorld, Setup
from benchmarks.networks import namespaces
from benchmarks.peers import Absent

_SETUP = Setup(3, 100)
_DEADLINE = 20.0
_MAIN = """
from benchmarks.harness.emulated_worlds import EmulatedWorld, Setup
world = EmulatedWorld(Setup(3, 100))
world.measure("ring", 1024, "float32", 1)
print(world._processes[0].pid, flush=True)
world.measure("ring", 4096, "float32", 10**7)
"""

pytestmark = pytest.mark.timeout(118)


@pytest.fixture(autouse=True)
def hosts() -> None:
    """Skip, and say why, where no hosts can be made."""
    if reason := namespaces.why_not():
        pytest.skip(reason)


def _ranks(session: int) -> list[int]:
    return [pid for pid in _pids() if _session(pid) == session]


def _pids() -> Iterator[int]:
    return (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def _namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:  # it has just ended
        return ""


def _links() -> set[str]:
    return set(os.listdir("/sys/class/net"))


def _wait_until_gone(used: set[str]) -> None:
    deadline = time.monotonic() + _DEADLINE
    while used & {_namespace(pid) for pid in _pids()}:
        assert time.monotonic() < deadline, "a rank is left in its namespace"
        time.sleep(0.05)


def test_ranks_have_a_namespace_each_and_none_after_the_end() -> None:
    before = _links()
    with EmulatedWorld(_SETUP) as world:
        assert world.congestion == "reno"
        used = {_namespace(pid) for pid in _ranks(world._processes[0].pid)}
        assert len(used) == _SETUP.ranks
        assert _namespace(os.getpid()) not in used
        assert _links() == before
    _wait_until_gone(used)


def test_no_byte_is_faster_than_the_links() -> None:
    nbytes = 1 << 20
    with EmulatedWorld(_SETUP) as world:
        seconds = world.seconds("ring", nbytes, 3)
    crossing = 2 * (_SETUP.ranks - 1) / _SETUP.ranks * nbytes
    assert seconds > 0.95 * crossing / (_SETUP.mbit * 1e6 / 8)


def test_nothing_is_left_when_a_rank_is_killed() -> None:
    with EmulatedWorld(_SETUP) as world:
        world.measure("ring", 1024, "float32", 1)
        first = world._processes[0].pid
        ranks = _ranks(first)
        used = {_namespace(pid) for pid in ranks}
        os.kill(next(pid for pid in ranks if pid != first), signal.SIGKILL)
        with pytest.raises(Absent):
            world.measure("ring", 1024, "float32", 1)
    _wait_until_gone(used)


def test_nothing_is_left_when_the_benchmark_is_killed() -> None:
    command = [sys.executable, "-c", _MAIN]
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as benchmark:
        try:
            assert benchmark.stdout is not None
            first = int(benchmark.stdout.readline())
            used = {_namespace(pid) for pid in _ranks(first)}
        finally:
            benchmark.kill()
    assert len(used) == _SETUP.ranks
    _wait_until_gone(used)
