"""Why a rank cannot connect is told to all ranks, with the rank that is to blame."""

import time
from collections.abc import Callable

import pytest
from rendezvous.ranks import (
    TIMEOUT,
    all_raise,
    connect_rank,
    in_threads,
    nothing_left_open,
    try_connect,
)

from allreduce.errors import UsageError
from allreduce.rendezvous import startup
from allreduce.rendezvous.connect import Connections
from allreduce.rendezvous.store import MemoryStore


def test_ranks_that_expect_another_arena_are_told() -> None:
    store = MemoryStore()
    with nothing_left_open():
        results = in_threads(
            2, lambda rank: connect_rank(store, rank, 2, arena_bytes=lambda n: 4096 * (n + rank))
        )
    all_raise(results, ValueError, "has 8192 B, this rank expects 12288 B")


def test_a_rank_that_gives_up_fails_the_others_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class GivesUp(startup.MeshBuilder):
        def run(self, look: Callable[[], None]) -> None:
            if self._rank == 2:
                raise RuntimeError("planned")
            super().run(look)

    monkeypatch.setattr(startup, "MeshBuilder", GivesUp)
    start = time.monotonic()
    with nothing_left_open():
        results = try_connect(4, nodes=2)
    assert time.monotonic() - start < TIMEOUT
    assert str(results[2]) == "planned"
    all_raise(results, ConnectionError, "start-up failed on rank 2: planned", but=(2,))
    assert {results[rank].rank for rank in (0, 1, 3)} == {2}


def test_a_rank_that_others_miss_is_the_culprit_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dies(startup.MeshBuilder):
        def run(self, look: Callable[[], None]) -> None:
            if self._rank == 3:  # as one that is killed: it tells nobody
                self.close()
                raise KeyboardInterrupt
            super().run(look)

    monkeypatch.setattr(startup, "MeshBuilder", Dies)
    with nothing_left_open():
        results = try_connect(6, nodes=3)
    assert {results[rank].rank for rank in (0, 1, 2, 4, 5)} == {3}, results


def test_one_that_cannot_begin_is_heard_at_once_on_one_node() -> None:
    store = MemoryStore()

    def connect(rank: int) -> Connections:
        return connect_rank(store, rank, 3, arena_bytes=lambda n: 0 if rank == 1 else 4096)

    with nothing_left_open():
        all_raise(in_threads(3, connect), UsageError, "arena_bytes(3) is 0")
