"""The store of an elastic job: a directory of the launcher's, which outlives any worker."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

from torch._C._distributed_c10d import Store

from allreduce import PeerError
from allreduce.rendezvous.store import FileStore
from trainer.launch.deaths import STORE, is_dead, note_dead

__all__ = ["DirectoryStore"]


class DirectoryStore(Store):
    """torch's interface to a FileStore.

    A worker that dies leaves no key half written. (torch's own FileStore is one file, to which each
    key is appended.)
    """

    def __init__(self, timeout: float) -> None:
        super().__init__()
        self._path = Path(os.environ[STORE])
        self._files = FileStore(self._path, timeout)
        self._expected: tuple[int, ...] = ()

    def expect(self, workers: Iterable[int]) -> None:
        """From now on PeerError at each use where the launcher has seen one of `workers` die."""
        self._expected = tuple(workers)

    def note_dead(self, workers: Iterable[int]) -> None:
        """Tells the launcher that the job goes on without these, dead or not."""
        for worker in workers:
            note_dead(self._path, worker)

    def set(self, key: str, value: str | bytes) -> None:
        """Stores a value."""
        self._watch()
        self._files.set(key, value.encode() if isinstance(value, str) else value)

    def get(self, key: str) -> bytes:
        """The value, once it is there."""
        self._watch()
        return self._files.get(key)

    def check(self, keys: list[str]) -> bool:
        """Whether all keys are there."""
        self._watch()
        return self._files.check(keys)

    def add(self, key: str, amount: int) -> int:
        """Adds to a number, 0 at first; the sum."""
        return self._files.add(key, amount)

    def delete_key(self, key: str) -> bool:
        """Removes a key; whether it was there."""
        return self._files.delete_key(key)

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Waits until all keys are there."""
        for key in keys:
            self._files.get(key)

    def _watch(self) -> None:
        for worker in self._expected:
            if is_dead(self._path, worker):
                raise PeerError(f"worker {worker} has died meanwhile", -1)
