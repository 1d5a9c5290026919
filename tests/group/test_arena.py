"""The shared memory of a node has pages for what has been written, and no others."""

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from worlds import run_threads

from allreduce import _C

SLOTS = 2 * 2 * 4 * (128 << 10)  # bytes, of two ranks in both lanes
_HUGE = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
pytestmark = pytest.mark.skipif(
    _HUGE.exists() and any(f"[{word}]" in _HUGE.read_text() for word in ("always", "force")),
    reason="shared memory comes in huge pages here",
)


def arenas() -> dict[int, int]:
    """The bytes that are there of each arena that this process holds, by inode."""
    found = {}
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the descriptor of the listing itself
            if "allreduce-arena" in os.readlink(link):
                status = os.stat(link)
                found[status.st_ino] = status.st_blocks * 512
    return found


def bytes_after(comm, calls, before) -> list[int]:
    """The bytes of the group's arena after each of the calls, on rank 0."""
    there = []
    for call in calls:
        call()
        comm.barrier()
        if comm.rank == 0:
            there += [size for inode, size in arenas().items() if inode not in before]
        comm.barrier()
    return there


def test_pages_come_when_they_are_first_written():
    before = arenas()

    def body(comm):
        sums = [lambda n=n: comm.allreduce(np.ones(n, "f4")) for n in (256, 1 << 18, 1 << 18)]
        return bytes_after(comm, [comm.barrier, *sums], before)

    at_first, small, large, again = run_threads(2, body)[0]
    assert at_first < small < large
    assert large == again <= SLOTS + (64 << 10)  # the words; nobody has used a ring
    assert large < _C.arena_bytes(2, 2) / 2


def test_rings_grow_to_their_size_and_no_further():
    before = arenas()

    def body(comm):
        def send():
            message = np.ones(4 << 20, "u1")
            comm.send(message, 1) if comm.rank == 0 else comm.recv(message, 0)

        barriers = [comm.barrier] * 4  # until both lanes have used each slot
        return bytes_after(comm, [*barriers, send, send], before)

    *_, at_first, once, twice = run_threads(2, body)[0]
    assert at_first >= SLOTS  # whole ones, though a barrier has written a byte
    # The ring of one direction, and the begin of the other's, which takes answers only.
    assert once - at_first == twice - at_first == (512 << 10) + (64 << 10)
