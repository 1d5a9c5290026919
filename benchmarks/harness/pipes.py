"""What every rank written in Python does: obeys the lines of its pipe, and answers.

The protocol is that of peers/protocol.h.
"""

from __future__ import annotations

import os
import signal
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from allreduce.commands.parent_death import die_with_parent


class Pipes:
    """The pipes of one rank. It ends when they are closed, or when its parent dies."""

    def __init__(self, folder: Path, rank: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other end decides
        die_with_parent(os.getppid())
        self._lines = (folder / f"{rank}.in").open()
        self._answers = (folder / f"{rank}.out").open("wb")

    def serve(self, obey: Callable[[str], bytes]) -> None:
        """Answer each line until there are no more."""
        with self._lines, self._answers:
            for line in self._lines:
                answer = obey(line)
                self._answers.write(struct.pack("@Q", len(answer)) + answer)
                self._answers.flush()


def timed(call: Callable[[], object], calls: int) -> np.ndarray:
    """Return the seconds of each of some calls."""
    seconds = np.empty(calls)
    for i in range(calls):
        begin = time.perf_counter()
        call()
        seconds[i] = time.perf_counter() - begin
    return seconds


def answer(
    run: Callable[[int], Sequence[float] | np.ndarray], warm_up: int, calls: int, wrong: int
) -> bytes:
    """Return the answer to "measure": wrong elements, CPU seconds, and the seconds of each call.

    run: makes so many calls, and returns the seconds of each.
    """
    run(warm_up)
    cpu = time.process_time()
    seconds = run(calls)
    cpu = time.process_time() - cpu
    return np.concatenate([[wrong, cpu], seconds]).tobytes()
