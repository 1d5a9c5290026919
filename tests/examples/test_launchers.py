"""The NumPy example under each launcher that this machine has."""

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(110)

PROGRAM = "numpy_collectives.py"
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed"
)
EVERY_RANK = [
    f"rank {rank} of 4, on node {rank // 2} of 2: all results are right" for rank in range(4)
]

ONE_FAILS = """
import os, pathlib, sys, time
folder, rank = pathlib.Path(__file__).parent, os.environ["RANK"]
(folder / f"{rank}.here").touch()
while len(list(folder.glob("*.here"))) < 4:
    time.sleep(0.01)
sys.exit("rank 3 fails") if rank == "3" else time.sleep(1000)
"""


def launcher_of(maker: str, names: tuple[str, ...]) -> str:
    """The first of these commands whose version says that; skips the test without one."""
    for name in names:
        if shutil.which(name):
            done = subprocess.run([name, "--version"], capture_output=True, text=True, timeout=30)
            if re.search(maker, done.stdout):
                return name
    pytest.skip(f"none of {', '.join(names)} is here with {maker} in its version")


def test_variables_alone(run_example) -> None:
    assert sorted(run_example("environment.sh", PROGRAM).splitlines()) == EVERY_RANK


def test_a_schedule_of_ones_own(run_example) -> None:
    out = run_example("environment.sh", "own_schedule.py")
    assert sorted(out.splitlines()) == [f"rank {rank} of 4: the sum is right" for rank in range(4)]


def test_it_needs_no_torch(run_example, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('torch is not to be imported')")
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).resolve().parents[2])])
    out = run_example("environment.sh", PROGRAM, PYTHONPATH=path)
    assert sorted(out.splitlines()) == EVERY_RANK


def test_open_mpi(run_example) -> None:
    mpirun = launcher_of("Open MPI|OpenRTE", ("mpirun.openmpi", "mpirun"))
    allow = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    out = run_example("openmpi.sh", PROGRAM, MPIRUN=mpirun, **allow)
    assert sorted(out.splitlines()) == EVERY_RANK


def test_mpich(run_example) -> None:
    mpiexec = launcher_of("HYDRA|Intel", ("mpiexec.hydra", "mpiexec"))
    out = run_example("mpich.sh", PROGRAM, MPIEXEC=mpiexec)
    assert sorted(out.splitlines()) == EVERY_RANK


@needs_torch
def test_torchrun(run_example) -> None:
    assert sorted(run_example("torchrun.sh", PROGRAM).splitlines()) == EVERY_RANK


@pytest.mark.parametrize(
    "launcher", ["environment.sh", pytest.param("torchrun.sh", marks=needs_torch)]
)
def test_a_failing_rank_ends_the_whole_job(run_example, launcher: str, tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text(ONE_FAILS)
    with pytest.raises(AssertionError, match=r"exit 1\n(?s:.*)rank 3 fails"):
        run_example(launcher, tmp_path / "fails.py")
