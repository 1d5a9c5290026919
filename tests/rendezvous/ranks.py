"""Worlds of ranks for the tests of the start-up: threads that call `connect`, nothing else."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from allreduce.rendezvous.connect import Connections, connect
from allreduce.rendezvous.store import MemoryStore, Store

TIMEOUT = 30.0  # for what should succeed: many times what a busy machine needs
ARENA_BYTES = 1 << 16

CLEAN: dict[str, str] = {}  # an environment without any ALLREDUCE_ variable


def in_threads(world_size: int, body: Callable[[int], Any]) -> list[Any]:
    """Run `body(rank)` on threads; return results by rank, an exception in its place."""
    results: list[Any] = [None] * world_size

    def run(rank: int) -> None:
        try:
            results[rank] = body(rank)
        except BaseException as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(r,), daemon=True) for r in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * TIMEOUT)
        assert not thread.is_alive(), "a rank hangs"
    return results


def connect_rank(store: Store, rank: int, world_size: int, **options: Any) -> Connections:
    """`connect` with the defaults of these tests."""
    options.setdefault("environ", CLEAN)
    options.setdefault("timeout", TIMEOUT)
    options.setdefault("arena_bytes", lambda local_size: ARENA_BYTES * local_size)
    return connect(store, rank, world_size, **options)


def try_connect(world_size: int, store: Store | None = None, **options: Any) -> list[Any]:
    """Connect all ranks; return their connections or exceptions."""
    shared = store or MemoryStore()
    return in_threads(world_size, lambda rank: connect_rank(shared, rank, world_size, **options))


@contextmanager
def connected(
    world_size: int, store: Store | None = None, **options: Any
) -> Iterator[list[Connections]]:
    """Connect all ranks, and close what they got."""
    results = try_connect(world_size, store, **options)
    found = [result for result in results if isinstance(result, Connections)]
    try:
        assert len(found) == world_size, results
        yield found
    finally:
        for connections in found:
            connections.close()


def close_wirings(results: list[Any]) -> None:
    for result in results:
        if isinstance(result, Connections):
            result.close()


def open_descriptors() -> dict[str, str]:
    """Descriptor -> what it is, without the one that lists them."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found


@contextmanager
def nothing_left_open() -> Iterator[None]:
    """Fail where more descriptors are open afterwards than before; threads may need a moment."""
    before = open_descriptors()
    yield
    deadline = time.monotonic() + 5
    while len(open_descriptors()) > len(before) and time.monotonic() < deadline:
        time.sleep(0.01)
    after = open_descriptors()
    assert len(after) <= len(before), {fd: what for fd, what in after.items() if fd not in before}


def all_raise(results: list[Any], kind: Any, says: str, but: tuple[int, ...] = ()) -> None:
    """Check that every rank but those failed with `kind`, and with the same words."""
    for rank, result in enumerate(results):
        if rank in but:
            continue
        assert isinstance(result, kind), (rank, result)
        assert says in str(result), (rank, result)
