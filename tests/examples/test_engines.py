"""The examples of engines that start jobs: Ray Train, Dask and submitit, each with two workers."""

import ctypes
import importlib.metadata
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(230)

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 200  # seconds for one program; Ray takes 25 to 60 on two cores
PR_SET_CHILD_SUBREAPER = 36
LINE = re.compile(r"rank (\d) of 2, backend hier: loss [\d.]+ -> ([\d.]+), .*weights (\w{8})")


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install 'hier-allreduce[torch,clients]'")


def descendants() -> list[int]:
    """The processes below this one that have not ended."""
    below: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = file.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has ended meanwhile
            continue
        if state != "Z":
            below.setdefault(int(parent), []).append(int(file.parent.name))
    found, ahead = [], [os.getpid()]
    while ahead:
        children = below.get(ahead.pop(), [])
        found += children
        ahead += children
    return found


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Orphans become children of this process; they have ten seconds to end."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    before = set(descendants())
    yield
    deadline = time.monotonic() + 10
    while (left := set(descendants()) - before) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    assert left == set(), "processes were left behind"


@pytest.fixture
def run(tmp_path: Path):
    """Runs an example as its reader would, and returns what it printed."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as short:  # socket names are short

        def run(program: str, *arguments: str) -> str:
            path = [str(ROOT), str(ROOT / "examples"), os.environ.get("PYTHONPATH", "")]
            env = os.environ | {"PYTHONPATH": os.pathsep.join(path), "HOME": str(tmp_path)}
            env |= {"RAY_TMPDIR": short, "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
            output = tmp_path / "output"  # not a pipe: a process that is left would keep it open
            with output.open("w") as file:
                job = subprocess.run(
                    [sys.executable, str(ROOT / "examples/engines" / program), *arguments],
                    cwd=tmp_path,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=DEADLINE,
                )
            assert job.returncode == 0, output.read_text()
            return output.read_text()

        yield run


def test_ray_train_starts_again_after_a_death(run) -> None:
    """It begins as without --kill: both need the secret, and the second group trains to the end."""
    needs("ray")
    needs("torch")
    if "hier" not in importlib.metadata.entry_points(group="torch.backends").names:
        pytest.skip("hier-allreduce is not installed: torch finds the backend by its entry point")
    out = run("ray_train.py", "--kill")
    assert re.search("PeerError: rank 1 on .* has died while rank 0 needs it", out), out
    assert "not authenticated" not in out
    ranks = LINE.findall(out)
    assert sorted(rank for rank, _, _ in ranks) == ["0", "1"]
    assert float(ranks[0][1]) < 0.3
    assert ranks[0][1:] == ranks[1][1:]


@pytest.mark.parametrize(
    ("package", "program"),
    [("distributed", "dask_allreduce.py"), ("submitit", "submitit_allreduce.py")],
)
def test_every_worker_has_the_sum(run, package: str, program: str) -> None:
    needs(package)
    out = run(program)
    assert "not authenticated" not in out
    assert [line for line in out.splitlines() if line.startswith("rank")] == [
        "rank 0 of 2: 3",
        "rank 1 of 2: 3",
    ]


@pytest.mark.parametrize(
    ("package", "program", "lost"),
    [
        ("distributed", "dask_allreduce.py", "KilledWorker"),
        ("submitit", "submitit_allreduce.py", "has not produced any output"),
    ],
)
def test_a_death_is_told_by_both_sides(run, package: str, program: str, lost: str) -> None:
    needs(package)
    out = run(program, "--kill")
    assert re.search(r"PeerError\W+rank 1 on .* has died while rank 0 needs it", out), out
    assert lost in out
