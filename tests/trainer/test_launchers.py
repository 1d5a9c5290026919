"""Processes that MPI and SLURM start know who they are; a step of one task starts its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.config.checks import ConfigError
from trainer.launch.launcher_environment import as_torchrun

SLURM = {
    "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "node[07-08]", "SLURM_JOB_ID": "77",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "job",
}  # fmt: skip
TINY = ["--model=resnet8", "--batch=64", "--max-iterations=2", "--log-every=2"]
TINY += ["--save-every=never"]


def test_slurms_variables_become_torchruns() -> None:
    found = as_torchrun(SLURM)
    assert 15000 <= int(found.pop("MASTER_PORT")) < 30000
    assert found == {
        "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "node07",
    }  # fmt: skip


def test_open_mpis_variables_become_torchruns() -> None:
    found = as_torchrun(OPEN_MPI)
    assert (found["RANK"], found["WORLD_SIZE"], found["MASTER_ADDR"]) == ("1", "2", "127.0.0.1")


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {**OPEN_MPI, "RANK": "0"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "77"},  # a batch script
        {**SLURM, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
    ],
    ids=["alone", "torchrun", "batch script", "one task"],
)
def test_nothing_is_changed_where_no_launcher_started_several(environ: dict[str, str]) -> None:
    assert as_torchrun(environ) == {}


def test_what_is_missing_is_said_in_one_line() -> None:
    with pytest.raises(ConfigError, match="MASTER_ADDR is missing") as caught:
        as_torchrun({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("launcher", ["mpirun.openmpi", "mpiexec.hydra"])
@pytest.mark.timeout(240)
def test_a_job_runs_under_mpi(launcher: str, tmp_path: Path) -> None:
    if not shutil.which(launcher):
        pytest.skip(f"{launcher} is not installed")
    more = ["--oversubscribe"] if "openmpi" in launcher else []
    allow = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    done = subprocess.run(
        [launcher, "-n", "2", *more, sys.executable, "-m", "trainer.run", *TINY, "--nodes=2",
         f"--out={tmp_path / 'run'}"],
        capture_output=True, text=True, timeout=200, check=False, env={**os.environ, **allow},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 workers on 2 nodes" in done.stdout
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.timeout(240)
def test_two_commands_make_one_job_of_two_machines(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    jobs = [
        subprocess.Popen(
            [sys.executable, "-m", "trainer.run", *TINY, "--workers=2", "--machines=2",
             f"--machine={machine}", f"--master=127.0.0.1:{port}", "--nodes=2",
             f"--out={tmp_path / 'run'}"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for machine in (1, 0)
    ]  # fmt: skip
    try:
        texts = [job.communicate(timeout=200) for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    assert [job.returncode for job in jobs] == [0, 0], texts
    said = "machine 1 of 2, with workers 1 to 1 of 2: the output is on machine 0, at 127.0.0.1\n"
    assert texts[0] == (said, "")
    assert "2 workers on 2 nodes" in texts[1][0]
