"""The processes of a job that are alive: their group, and after a death the group of the others."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import numpy as np
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore

from trainer.config.options import Config
from trainer.launch.deaths import OUTPUT
from trainer.launch.directory_store import DirectoryStore
from trainer.launch.process_group import join_group, leave_group
from trainer.launch.rendezvous import meet

if TYPE_CHECKING:
    from allreduce import Communicator

__all__ = ["Members", "take_output"]

_FRUITLESS = 10  # groups that may fail although nobody died: more, and the network is at fault


class Members:
    """The processes of a job, as one of them sees them. `comm` is for training.

    After a death those alive agree by a communicator of their own, `control`. It stays open beside
    `comm`: whoever could not make `comm` has `control`. Before the first death it is `comm`.
    """

    def __init__(self, config: Config) -> None:
        store = meet(config)
        self.comm = self.control = join_group(config, store)
        self._store = store if isinstance(store, DirectoryStore) else None
        if self._store:
            self._store.expect(())
        self._number = self.comm.rank  # of this process, at the start of the job
        self._alive = list(range(self.comm.world_size))  # all such numbers, by rank
        self._gone: list[int] = []  # those that have died since the last `join`
        self._shrunk = self._fruitless = 0

    def shrink(self) -> None:
        """Leaves the group that has failed, and makes `control` of those alive.

        AbortedError if the others went on without this process.
        """
        self.control = self.control.shrink()
        self._shrunk += 1
        if dist.is_initialized():
            leave_group()
        # torch numbers groups, and counts one that was not made: all must count alike.
        dist.distributed_c10d._world.group_count = 0

    def gone(self) -> list[int]:
        """Those that died since the last `join`, by their ranks at the start; all call it."""
        numbers = self.control.allgather(np.array([self._number])).tolist()
        gone = [number for number in self._alive if number not in numbers]
        self._elastic_store.note_dead(gone)
        self._alive = numbers
        self._gone += gone
        self._fruitless += not gone
        if self._fruitless > _FRUITLESS:
            raise RuntimeError(f"the group failed {self._fruitless} times, and nobody had died")
        return sorted(self._gone)

    def join(self, config: Config) -> Communicator:
        """Makes the group of those alive, by whose number `config` is scaled; its communicator."""
        os.environ["RANK"] = str(self.control.rank)
        os.environ["WORLD_SIZE"] = str(self.control.world_size)
        store = self._elastic_store
        store.expect(self._alive)  # should one die now, the others do not wait for it
        try:
            self.comm = join_group(config, PrefixStore(f"trainer/{self._shrunk}", store))
        finally:
            store.expect(())
        self._gone = []
        return self.comm

    def leave(self) -> None:
        """Leaves the group; every process does, after its last collective call."""
        leave_group()
        if self.control is not self.comm:
            self.control.close()

    @property
    def _elastic_store(self) -> DirectoryStore:
        assert self._store is not None, "the job is elastic"
        return self._store


def take_output() -> None:
    """From now on this process writes to the job's stdout and stderr, as rank 0 does."""
    for number, text in zip((1, 2), os.environ[OUTPUT].split(":"), strict=True):
        (sys.stdout, sys.stderr)[number - 1].flush()
        os.dup2(int(text), number)
