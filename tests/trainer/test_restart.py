"""What rank 0 reads at a restart reaches every rank as it was written, or all say who got else."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from worlds import run_threads

from trainer.checkpoint.file import CheckpointError, Checkpoints, Facts
from trainer.checkpoint.restore import restart
from trainer.checkpoint.states import States
from trainer.config.options import Config

CONFIG = Config(model="resnet8", workers=3, nodes=1)


class Flipping:
    """A communicator whose `broadcast` gives a rank one wrong bit in message `number` (from 0)."""

    def __init__(self, comm, number: int) -> None:
        self._comm, self._left = comm, number

    def __getattr__(self, name: str):
        return getattr(self._comm, name)

    def broadcast(self, array: np.ndarray, **options):
        self._comm.broadcast(array, **options)
        if self._left == 0:
            array.view(np.uint8)[len(array) // 2] ^= 16
        self._left -= 1
        return array


def saved(run: Path) -> None:
    states = States(common={"model": torch.nn.Linear(9, 9)}, workers={})
    collected = {"model": torch.nn.Linear(9, 9).state_dict(), "workers": {}}
    config = dataclasses.asdict(dataclasses.replace(CONFIG, out=str(run)))
    facts = Facts(epoch=0, offset=0, iteration=0, progress=0.0, workers=3, minibatch=96,
                  config=config, spent={"images": 0, "elapsed": 0.0})  # fmt: skip
    Checkpoints(run).add(states.packed(collected), facts)


def outcomes(run: Path, wrong: tuple[int, ...], number: int) -> list:
    """What each of three ranks raises where those in `wrong` get one wrong bit."""

    def body(comm):
        comm = Flipping(comm, number) if comm.rank in wrong else comm
        job = SimpleNamespace(
            comm=comm, config=dataclasses.replace(CONFIG, out=str(run)), saver=SimpleNamespace(
                went_on_from=lambda path: None)
        )  # fmt: skip
        states = States(common={"model": torch.nn.Linear(9, 9)}, workers={})
        restart(job, states)

    return run_threads(3, body, errors=True)


# Head and body of the facts, then head and body of the payload.
@pytest.mark.parametrize("number", [0, 1, 2, 3])
@pytest.mark.parametrize("wrong", [(1,), (1, 2)])
def test_a_rank_that_receives_one_wrong_bit_is_named_by_all(tmp_path, number, wrong) -> None:
    saved(tmp_path)
    found = outcomes(tmp_path, wrong, number)
    assert [type(error) for error in found] == [CheckpointError] * 3
    names = ", ".join(map(str, wrong))
    assert {str(error).split(" received")[0].split(": ")[1] for error in found} == {f"rank {names}"}


def test_the_file_is_named(tmp_path: Path) -> None:
    saved(tmp_path)
    (path,) = Checkpoints(tmp_path).paths()
    assert str(outcomes(tmp_path, (2,), 3)[0]).startswith(f"{path}: rank 2 received other bytes")
