"""Processes or threads that decode, and the memory that they write batches into.

Why not torch's DataLoader: its workers each hold a torch; one that dies is noticed after 5 s, and
one that hangs either with a deadline or not at all; its batches lie in named shared memory, which
kill -9 leaves behind.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import Literal

from trainer.data.decoding import Failure, Pixels, Work
from trainer.data.slots import Slots, enter, fill_slot
from trainer.errors import TrainerError

__all__ = ["PIECE", "DecodePool", "FeedError"]

PIECE = 16  # images that a process or thread makes at a time

_TIDY = 2.0  # seconds that the executor has for its own end, or to learn of a process's
_LOOK = 0.01  # seconds
Pieces = Sequence[Future[list[Failure]]]


class FeedError(TrainerError, RuntimeError):
    """Images stopped coming; one line that names the rank and the remedy."""


class DecodePool:
    """`workers` processes or threads that fill slots of `rows` images each.

    There are `slots` of them: enough that each worker has a piece to do and one waiting.
    """

    def __init__(
        self,
        kind: Literal["processes", "threads"],
        workers: int,
        *,
        rows: int,
        side: int,
        timeout: float,
        rank: int,
    ) -> None:
        self.slots = max(2, -(-2 * workers // -(-rows // PIECE)))
        self._memory = Slots(self.slots, rows, side)
        self._workers, self._timeout, self._rank = workers, timeout, rank
        self._others = {process.pid for process in multiprocessing.active_children()}
        self._processes: dict[int | None, BaseProcess] = {}
        self._executor: Executor
        if kind == "threads":
            self._executor = ThreadPoolExecutor(workers, "decode")
        else:
            self._executor = ProcessPoolExecutor(
                workers,
                mp_context=multiprocessing.get_context("spawn"),  # a fork has our sockets, too
                initializer=enter,
                initargs=(self._memory.address, self._memory.shape, os.getpid()),
            )

    def submit(self, slot: int, works: Sequence[Work], count: int) -> Pieces:
        """Has the `count` images of a batch made in `slot`, each of `works` being PIECE of them."""
        pieces = []
        for first, work in zip(range(0, count, PIECE), works, strict=True):
            size = min(PIECE, count - first)
            with self._naming_the_dead():
                if isinstance(self._executor, ProcessPoolExecutor):
                    pieces.append(self._executor.submit(fill_slot, work, slot, first, size))
                else:
                    rows = self._memory[slot][first : first + size]
                    pieces.append(self._executor.submit(work.fill, rows))
        return pieces

    def wait(self, pieces: Pieces) -> list[Failure]:
        """Waits until a batch is made; its failures, by row of the batch.

        FeedError if a process has died, or when the time is over.
        """
        self._look()
        deadline = time.monotonic() + self._timeout
        failures = []
        for number, piece in enumerate(pieces):
            with self._naming_the_dead():
                found = piece.result(max(0.0, deadline - time.monotonic()))
            first = number * PIECE
            failures += [Failure(first + failure.row, failure.reason) for failure in found]
        return failures

    def pixels(self, slot: int, count: int) -> Pixels:
        """The first `count` images of a slot, until it is filled again."""
        return self._memory[slot][:count]

    def give_up(self, pieces: Pieces) -> None:
        """Returns when none of `pieces` writes any more, so that their slots can be used."""
        for piece in pieces:
            piece.cancel()
        concurrent.futures.wait(pieces, self._timeout)

    def close(self) -> None:
        """Ends all at once, whatever they are doing."""
        self._look()
        self._executor.shutdown(wait=False, cancel_futures=True)
        for process in self._processes.values():
            process.kill()
        # It frees its semaphores when its own thread has seen that all are gone.
        tidy = threading.Thread(target=self._executor.shutdown, daemon=True)
        tidy.start()
        tidy.join(_TIDY)
        del self._executor
        self._memory.close()

    def _look(self) -> None:
        """Keeps hold of the processes: the executor forgets those that died."""
        if isinstance(self._executor, ProcessPoolExecutor) and len(self._processes) < self._workers:
            for process in multiprocessing.active_children():
                if process.pid not in self._others:
                    self._processes[process.pid] = process

    @contextlib.contextmanager
    def _naming_the_dead(self) -> Iterator[None]:
        try:
            yield
        except BrokenProcessPool:
            raise FeedError(
                f"rank {self._rank}: a decoding process {self._how_it_ended()}: is there enough "
                "memory? fewer --data-workers need less"
            ) from None
        except concurrent.futures.TimeoutError:
            raise FeedError(
                f"rank {self._rank}: no batch of images within {self._timeout:g} s: are the disk "
                "and the network there? --timeout waits longer"
            ) from None

    def _how_it_ended(self) -> str:
        deadline = time.monotonic() + _TIDY
        while time.monotonic() < deadline:
            codes = {pid: process.exitcode for pid, process in self._processes.items()}
            # When one has died, the executor ends the others by SIGTERM.
            own = [(p, code) for p, code in codes.items() if code not in (None, 0, -signal.SIGTERM)]
            for pid, code in own:
                if code is not None and code < 0:
                    return f"({pid}) was killed by {signal.Signals(-code).name}"
                return f"({pid}) failed with exit code {code}"
            time.sleep(_LOOK)  # the executor's thread may be about to write the code down
        return "died"
