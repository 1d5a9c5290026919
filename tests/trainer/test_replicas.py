"""`--check-replicas`: all name the process whose network differs, before anything is saved."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from worlds import run_threads

from trainer.training.replicas import ReplicaError, Replicas, fingerprint

MOMENTUM = "momentum_buffer"


def trained(seed: int = 0) -> torch.optim.Optimizer:
    """A network that has made a step, so that there is momentum."""
    generator = torch.Generator().manual_seed(seed)
    network = torch.nn.Linear(7, 5)
    for parameter in network.parameters():
        parameter.data = torch.rand(parameter.shape, generator=generator)
        parameter.grad = torch.rand(parameter.shape, generator=generator)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    optimizer.step()
    return optimizer


def flip(tensor: torch.Tensor, bit: int = 0) -> None:
    tensor.detach().view(torch.int32).view(-1)[3] ^= 1 << bit


def outcomes(world_size: int, change) -> list:
    """What each rank raises; `change(rank, optimizer)` comes before the second comparison."""

    def body(comm):
        optimizer = trained()
        replicas = Replicas(comm, optimizer, 10)
        replicas.check(10)
        change(comm.rank, optimizer)
        replicas.check(15)  # not yet
        replicas.check(20)

    return run_threads(world_size, body, errors=True)


def test_equal_replicas_pass() -> None:
    assert outcomes(3, lambda rank, optimizer: None) == [None] * 3


@pytest.mark.parametrize("what", ["parameter", "momentum"])
@pytest.mark.parametrize("bit", [0, 31])
def test_the_rank_that_differs_is_named_by_all(what: str, bit: int) -> None:
    def change(rank: int, optimizer) -> None:
        if rank == 1:
            parameter = optimizer.param_groups[0]["params"][0]
            flip(parameter if what == "parameter" else optimizer.state[parameter][MOMENTUM], bit)

    found = outcomes(4, change)
    assert {str(error) for error in found} == {
        "after iteration 20 parameters or momentum are not alike: those of rank 1 are not those of "
        "the 3 other ranks; they were alike after iteration 10"
    }
    assert {type(error) for error in found} == {ReplicaError}


def test_of_two_ranks_both_are_named() -> None:
    def change(rank: int, optimizer) -> None:
        if rank == 1:
            flip(optimizer.param_groups[0]["params"][0])

    found = outcomes(2, change)
    assert "those of rank 0, of rank 1 differ, and none is a majority" in str(found[0])
    assert "checkpoints hold what rank 0 had" in str(found[1])


def test_where_rank_0_is_wrong_its_checkpoints_are_told_of() -> None:
    def change(rank: int, optimizer) -> None:
        if rank == 0:
            flip(optimizer.param_groups[0]["params"][0])

    assert "checkpoints hold what rank 0 had" in str(outcomes(3, change)[2])


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool]
)
def test_any_bit_changes_the_fingerprint_of_any_type(dtype: torch.dtype, rng) -> None:
    size = (1 << 20) + 3  # more than is hashed at a time
    tensor = torch.from_numpy(rng.integers(0, 2, size)).to(dtype)
    before = fingerprint([tensor])
    raw = tensor.view(torch.uint8).numpy()
    for at in (0, raw.size // 2, raw.size - 1):
        for bit in range(1 if dtype == torch.bool else 8):
            raw[at] ^= 1 << bit
            assert fingerprint([tensor]) != before, (at, bit)
            raw[at] ^= 1 << bit
    assert fingerprint([tensor]) == before


def test_numbers_or_tensors_that_change_places_change_the_fingerprint(rng) -> None:
    a, b = (torch.from_numpy(rng.random(100).astype(np.float32)) for _ in range(2))
    swapped = a.clone()
    swapped[[3, 4]] = a[[4, 3]]
    assert (
        len({fingerprint(x) for x in ([a, b], [b, a], [swapped, b], [a], [torch.cat([a, b])])}) == 5
    )


def test_memory_order_and_scalars_do_not_matter() -> None:
    images = torch.rand(2, 3, 4, 5)
    last = images.contiguous(memory_format=torch.channels_last)
    scalar = torch.tensor(3.0)
    assert fingerprint([images, scalar]) == fingerprint([last, scalar.clone()])


# The job; but in iteration 3 one bit of a weight of rank 1 changes.
JOB = """
import os, sys
from trainer import run
from trainer.launch.local_processes import launch
if "RANK" in os.environ:
    import torch
    from trainer.training.run_state import Job
    move_to = Job.move_to
    def move_and_flip(job, epoch, offset):
        move_to(job, epoch, offset)
        if job.comm.rank == 1 and job.iteration == 3:
            next(job.model.parameters()).data.view(-1)[:1].view(torch.int32)[0] ^= 1
    Job.move_to = move_and_flip
else:
    run.launch = lambda config: launch(config, (sys.executable, __file__))
sys.exit(run.main())
"""


@pytest.mark.timeout(400)
def test_a_run_ends_and_names_the_rank_before_it_saves(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(JOB)
    done = subprocess.run(
        [sys.executable, str(script), "--model=resnet8", "--batch=64", "--workers=3", "--threads=1",
         "--epochs=2", "--check-replicas=2", "--save-every=2", f"--out={tmp_path / 'run'}"],
        capture_output=True, text=True, timeout=360, check=False, env={**os.environ},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("those of rank 1 are not those of the 2 other ranks") == 1
    assert "after iteration 4" in done.stderr
    saved = [path.name for path in (tmp_path / "run" / "checkpoints").glob("epoch*")]
    assert sorted(saved) == ["epoch_0000_image_000000000.pt", "epoch_0000_image_000000384.pt"]
