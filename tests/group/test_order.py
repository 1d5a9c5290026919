"""Calls of one group that touch the same memory run in the order of the calls."""

import random
import time

import numpy as np
import pytest
from group_cases import nodes, size
from worlds import run_threads

from allreduce import _C
from allreduce.errors import UsageError

LAYOUTS = ("1x2", "2x1", "1x4", "2x2")
COUNT = 50_000


def full(rank: int, count: int = COUNT) -> np.ndarray:
    return np.full(count, rank + 1.0, np.float32)


@pytest.mark.parametrize("lanes", [1, 2, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_calls_on_one_array_follow_each_other(layout, lanes):
    p = size(layout)
    total = p * (p + 1) / 2

    def body(comm):
        for _ in range(15):
            x = full(comm.rank)
            works = [comm.allreduce(x, async_op=True) for _ in range(3)]
            for work in reversed(works):
                work.wait()
            assert (x == total * p * p).all()

            x = full(comm.rank)
            work = comm.allreduce(x, async_op=True)
            comm.broadcast(x)
            assert (comm.allgather(x[:5]) == total).all()
            work.wait()

            x = full(comm.rank)
            comm.allreduce(x, async_op=True)
            comm.barrier()
            assert (x == total).all()

    run_threads(p, body, nodes=nodes(layout), lanes=lanes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_copy_is_taken_after_earlier_calls(layout):
    p = size(layout)
    total = p * (p + 1) / 2

    def body(comm):
        for _ in range(15):
            x = full(comm.rank, COUNT * p)
            for call in (
                lambda x: comm.reduce_scatter(x, "max"),
                comm.allgather,
                lambda x: comm.alltoall(x),
                lambda x: comm.reduce(x, "max"),
            ):
                x[:] = comm.rank + 1
                work = comm.allreduce(x, async_op=True)
                assert (call(x) == total).all()
                work.wait()

    run_threads(p, body, nodes=nodes(layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_symmetric_memory_follows_too(layout):
    p = size(layout)

    def body(comm):
        x = comm.symmetric_empty(COUNT)
        for _ in range(15):
            x[:] = comm.rank + 1
            works = [comm.allreduce(x[i:], async_op=True) for i in (0, 10, 0)]
            for work in works:
                work.wait()
            total = p * (p + 1) / 2
            assert (x[:10] == total * p).all()
            assert (x[10:] == total * p * p).all()

    run_threads(p, body, nodes=nodes(layout))


@pytest.mark.parametrize("lanes", [1, 2, 5])
@pytest.mark.parametrize("layout", ["1x2", "2x2", "1x4"])
def test_ranks_that_see_different_overlaps_do_not_wait_in_a_circle(layout, lanes):
    p, calls = size(layout), 60

    def body(comm):
        rng = random.Random(comm.rank)
        arrays = [np.zeros(COUNT) for _ in range(3)]
        works = []
        for _ in range(calls):
            i = rng.randrange(3)  # of its own on each rank
            begin = rng.choice((0, 100, 20_000))
            works.append(comm.allreduce(arrays[i][begin : begin + 20_000], "max", async_op=True))
            if rng.random() < 0.1:
                time.sleep(0.001)
        rng.shuffle(works)
        for work in works:
            work.wait()
        comm.barrier()

    run_threads(p, body, nodes=nodes(layout), lanes=lanes)


@pytest.mark.parametrize("each", [100, 1000], ids=["by node, if there are several", "straight"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_alltoall_may_replace_its_input(layout, each):
    p = size(layout)

    def body(comm):
        for _ in range(10):
            x = np.arange(p * each, dtype=np.int64) + comm.rank * p * each
            exchange(comm, x, x)
            want = np.concatenate([np.arange(each) + (r * p + comm.rank) * each for r in range(p)])
            np.testing.assert_array_equal(x, want)

    run_threads(p, body, nodes=nodes(layout))


def test_an_alltoall_refuses_arrays_that_overlap_in_part():
    def body(comm):
        x = np.zeros(300, np.int64)
        for out, source in ((x[:200], x[100:]), (x[1:201], x[:200]), (x[:200], x[199:299])):
            with pytest.raises(UsageError, match="overlap in part; pass one array as both"):
                exchange(comm, out, source[: len(source) // 2 * 2])
        exchange(comm, x[:100], x[100:200])

    run_threads(2, body)


def exchange(comm, out: np.ndarray, source: np.ndarray) -> None:
    comm._group.run(
        _C.Collective.alltoall,
        out.ctypes.data,
        out.size,
        "int64",
        input=source.ctypes.data,
        input_count=source.size,
    )
