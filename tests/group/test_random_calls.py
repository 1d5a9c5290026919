"""Long random sequences of every collective, blocking and not: each result is checked."""

import random
import time

import numpy as np
import pytest
from group_cases import LOCAL_FORMS, nodes, size
from worlds import run_threads

from allreduce.schedules import algorithms

LAYOUTS = ("1x2", "1x4", "2x1", "2x2", "4x2", "3+1+2", "interleaved", "scattered")
COUNTS = (0, 1, 2, 15, 16, 17, 1000, 2048, 2049, 4096, 5000, 40_000, 150_000)


class Caller:
    """One rank. `shared` is seeded alike on all ranks and decides what is called; `own` is not."""

    def __init__(self, comm, seed: int):
        self.comm, self.p = comm, comm.world_size
        self.shared, self.own = random.Random(seed), random.Random(seed * 1000 + comm.rank)
        self.pool = [comm.symmetric_empty(200_000, "int64") for _ in range(3)]
        self.busy: list[tuple] = []  # (work, array, what it must become, its place in the pool)

    def step(self) -> None:
        if self.own.random() < 0.1:
            time.sleep(self.own.random() * 0.002)
        count, value = self.shared.choice(COUNTS), self.shared.randrange(1000)
        getattr(self, self.shared.choice(("sum", "sum", "sum", "max", "other", "settle")))(
            count, value
        )

    def sum(self, count: int, value: int) -> None:
        total = sum(range(self.p)) + self.p * value
        self._allreduce("sum", count, self.comm.rank + value, total)

    def max(self, count: int, value: int) -> None:
        self._allreduce("max", count, self.comm.rank ^ value, max(r ^ value for r in range(self.p)))

    def _allreduce(self, op: str, count: int, mine: int, want: int) -> None:
        place = self.shared.randrange(6)
        if any(entry[3] == place for entry in self.busy):
            self.settle(0, 0)
        background = self.shared.random() < 0.5
        if place < len(self.pool):
            offset = self.shared.choice((0, 8, 1000))
            x = self.pool[place][offset : offset + count]
        else:
            x = np.empty(count, np.int64)
        x[:] = mine
        algo = self.shared.choice(["auto", *algorithms("allreduce")])
        work = self.comm.allreduce(x, op, algo, async_op=background)
        self.busy.append((work if background else None, x, want, place))
        if not background:
            self._check(self.busy.pop())

    def other(self, count: int, value: int) -> None:
        kind = self.shared.choice(("allgather", "reduce_scatter", "broadcast", "reduce", "barrier"))
        root = self.shared.randrange(self.p)
        rank, total = self.comm.rank, sum(range(self.p)) + self.p * value
        x = np.full(count, rank + value)
        if kind == "allgather":
            got = self.comm.allgather(x).reshape(self.p, count)
            assert (got == np.arange(self.p)[:, None] + value).all()
        elif kind == "reduce_scatter":
            got = self.comm.reduce_scatter(np.full(count * self.p, rank + value))
            assert got.shape == (count,)
            assert (got == total).all()
        elif kind == "broadcast":
            assert (self.comm.broadcast(x, root) == root + value).all()
        elif kind == "reduce":
            assert (
                self.comm.reduce(x, root=root) == (total if rank == root else rank + value)
            ).all()
        else:
            self.comm.barrier()

    def settle(self, _count: int, _value: int) -> None:
        self.own.shuffle(self.busy)
        while self.busy:
            self._check(self.busy.pop())

    def _check(self, entry: tuple) -> None:
        work, x, want, _place = entry
        if work is not None:
            assert work.wait() is x
        assert (x == want).all(), (x.size, x[x != want][:5], want)


def play(layout: str, local: str, seed: int, steps: int, **options) -> None:
    def body(comm):
        caller = Caller(comm, seed)
        for _ in range(steps):
            caller.step()
        caller.settle(0, 0)

    run_threads(size(layout), body, nodes=nodes(layout), local=local, **options)


@pytest.mark.parametrize("local", LOCAL_FORMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_random_calls(layout, local):
    play(layout, local, LAYOUTS.index(layout), 80)


@pytest.mark.parametrize("lanes", [1, 3, 7])
@pytest.mark.parametrize("segment_bytes", [64, 4096])
def test_random_calls_with_other_options(lanes, segment_bytes):
    play("4x2", "rs_ag", lanes, 60, lanes=lanes, segment_bytes=segment_bytes, rails=1 + lanes % 2)


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(10, 30))
def test_many_random_calls(seed):
    for layout in LAYOUTS:
        for local in LOCAL_FORMS:
            play(layout, local, seed, 300)
