"""Whole jobs on emulated hosts: the trainer on two machines, launchers, the paper's 256 ranks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from emulate_cases import emulate, why_not

_HERE = Path(__file__).parent
_TINY = "--model=resnet8 --batch=64 --max-iterations=2 --log-every=2 --save-every=never --threads=1"
_PYTHON = sys.executable
_FORGET = "unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE; "  # no launcher has started this


@pytest.fixture(autouse=True)
def hosts() -> None:
    """Skip, and say why, where no hosts can be made."""
    if reason := why_not():
        pytest.skip(f"no emulated hosts here: {reason}")


def _slurm(hosts: int) -> str:
    """The variables of a step on so many hosts, in the place of all others."""
    return (
        "export SLURM_PROCID=$RANK SLURM_LOCALID=$LOCAL_RANK SLURM_STEP_NUM_TASKS=$WORLD_SIZE "
        f"SLURM_STEP_NUM_NODES=$NNODES SLURM_STEP_NODELIST='host[0-{hosts - 1}]' SLURM_JOB_ID=77; "
        f"unset MASTER_ADDR MASTER_PORT; {_FORGET}"
    )


def _shell(script: str, *options: str, hosts: int, timeout: float = 220) -> str:
    done = emulate(*options, "--", "sh", "-c", script, hosts=hosts, rate="1Gbit", timeout=timeout)
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-4000:])
    return done.stdout


@pytest.mark.timeout(240)
def test_the_trainer_runs_on_two_machines_by_two_commands(tmp_path: Path) -> None:
    said = _shell(
        f"{_FORGET} exec {_PYTHON} -m trainer.run {_TINY} --workers 2 --machines 2 "
        f"--machine $NODE_RANK --master $MASTER_ADDR:29500 --out {tmp_path}/run$NODE_RANK",
        hosts=2,
    )
    assert "2 workers on 2 nodes" in said
    assert json.loads((tmp_path / "run0/summary.json").read_text())
    assert not (tmp_path / "run1/summary.json").exists()


@pytest.mark.timeout(240)
def test_ranks_under_slurms_variables_find_each_other_by_host_name() -> None:
    said = _shell(
        f"{_slurm(4)} exec {_PYTHON} -m allreduce.bench -b 1K -e 1K -n 3",
        "--ranks-per-host=2",
        hosts=4,
    )
    assert "8 ranks; nodes x ranks: 4 x 2; 4 host(s)" in said
    assert "# Out of bounds values : 0 OK" in said
    assert "EMULATED: 4 hosts, 1 Gbit/s" in said


@pytest.mark.full
@pytest.mark.timeout(600)
def test_torchrun_runs_the_trainer_on_8_hosts_of_4(tmp_path: Path) -> None:
    said = _shell(
        f"exec {_PYTHON} -m torch.distributed.run --nnodes $NNODES --node-rank $NODE_RANK "
        "--master-addr $MASTER_ADDR --master-port $MASTER_PORT --nproc-per-node 4 "
        f"-m trainer.run {_TINY} --batch=2 --out {tmp_path}/run",
        hosts=8,
        timeout=580,
    )
    assert "32 workers on 8 nodes" in said
    assert (tmp_path / "run/summary.json").exists()


@pytest.mark.full
@pytest.mark.timeout(600)
def test_the_trainer_runs_under_slurms_variables_on_8_hosts_of_4(tmp_path: Path) -> None:
    said = _shell(
        f"{_slurm(8)} exec {_PYTHON} -m trainer.run {_TINY} --batch=2 --out {tmp_path}/run",
        "--ranks-per-host=4",
        hosts=8,
        timeout=580,
    )
    assert "32 workers on 8 nodes" in said
    assert (tmp_path / "run/summary.json").exists()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("hosts", "ranks"), [(4, 2), pytest.param(32, 8, marks=pytest.mark.full)], ids=str
)
def test_a_tiny_network_learns_on_as_many_ranks_as_the_paper_had(hosts: int, ranks: int) -> None:
    said = _shell(f"exec {_PYTHON} {_HERE}/digits_job.py {ranks} 6", hosts=hosts, timeout=280)
    world_size, *losses = said.split()
    assert int(world_size) == hosts * ranks
    assert float(losses[-1]) < float(losses[0])
