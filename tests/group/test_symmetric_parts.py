"""Reduce-scatter and allgather in symmetric memory: ranks of one node read each other's parts."""

import time

import numpy as np
import pytest
from group_cases import LAYOUTS, size
from worlds import run_threads

from allreduce.errors import MismatchError

ONE_NODE = (2, 3, 4, 8)
ROWS = {"even": lambda p: None, "uneven": lambda p: [(5 * rank) % 4 for rank in range(p)]}


def shape(p, rows, columns):
    return (sum(rows) if rows else 2 * p, columns)


def own_rows(p, rank, rows):
    parts = np.cumsum([0, *(rows or [2] * p)])
    return slice(parts[rank], parts[rank + 1])


@pytest.mark.parametrize("dtype", ["float32", "int8", "float64"])
@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_results_are_those_of_private_memory(layout, kind, dtype):
    p = size(layout)
    rows = ROWS[kind](p)

    def body(comm):
        for columns in (0, 1, 7, 5000):
            whole = shape(p, rows, columns)
            private = (np.arange(np.prod(whole)) % 11 + comm.rank).astype(dtype).reshape(whole)
            x = comm.symmetric_empty(whole, dtype)
            mine = own_rows(p, comm.rank, rows)
            for op in ("sum", "max"):
                x[:] = private
                found = comm.reduce_scatter(x, op, rows=rows, in_place=True)
                expected = comm.reduce_scatter(private, op, rows=rows)
                np.testing.assert_array_equal(found, expected)
            x[:] = -1
            x[mine] = private[mine]
            gathered = comm.allgather(private[mine].copy(), rows=rows)
            np.testing.assert_array_equal(comm.allgather(x, rows=rows, in_place=True), gathered)

    run_threads(p, body, nodes=LAYOUTS[layout])


@pytest.mark.parametrize("p", ONE_NODE)
def test_the_mean_and_the_order_of_the_sum_are_an_allreduce_s(p):
    def body(comm):
        rng = np.random.default_rng(comm.rank)
        private = rng.standard_normal(64 * p).astype(np.float32)
        mine = own_rows(p, comm.rank, [64] * p)
        for op in ("sum", "avg"):
            x = comm.symmetric_empty(64 * p, "float32")
            x[:] = private
            expected = comm.allreduce(private.copy(), op)
            np.testing.assert_array_equal(comm.reduce_scatter(x, op, in_place=True), expected[mine])

    run_threads(p, body)


@pytest.mark.parametrize("collective", ["reduce_scatter", "allgather"])
def test_the_memory_is_the_callers_once_a_call_has_ended(collective):
    """Ranks take turns in being late: who is early must wait until the late one has read."""
    p, part, rounds = 4, 1 << 14, 30

    def body(comm):
        x = comm.symmetric_empty(p * part, "int32")
        for turn in range(rounds):
            x[:] = turn * p + comm.rank
            if comm.rank == turn % p:
                time.sleep(0.002)
            if collective == "allgather":
                comm.allgather(x, in_place=True)
                expected = np.repeat(np.arange(p), part) + turn * p
                np.testing.assert_array_equal(x, expected)
            else:
                found = comm.reduce_scatter(x, in_place=True)
                assert (found == sum(turn * p + rank for rank in range(p))).all()
            x[:] = -1

    run_threads(p, body)


def test_nothing_is_copied_but_the_parts():
    p, part = 4, 1 << 12

    def body(comm):
        x = comm.symmetric_empty(p * part, "float32")
        read = []
        for call in (comm.reduce_scatter, comm.allgather):
            comm.barrier()
            before = comm.traffic()["shared_memory_bytes"]
            call(x, in_place=True)
            read.append(comm.traffic()["shared_memory_bytes"] - before)
        return read

    # Rings would carry a header for each run, too.
    assert run_threads(p, body) == [[(p - 1) * 4 * part] * 2] * p


def test_without_a_hierarchy_it_is_memory_like_any_other():
    def body(comm):
        x = comm.symmetric_empty(8, "float32")
        x[:] = comm.rank
        np.testing.assert_array_equal(comm.reduce_scatter(x, "sum", in_place=True), [6, 6])
        x[2 * comm.rank : 2 * comm.rank + 2] = comm.rank
        np.testing.assert_array_equal(comm.allgather(x, in_place=True), [0, 0, 1, 1, 2, 2, 3, 3])

    run_threads(4, body, local="none")


@pytest.mark.parametrize("collective", ["reduce_scatter", "allgather"])
def test_ranks_that_mean_other_memory_hear_of_it(collective):
    def body(comm):
        x = comm.symmetric_empty(66, "float32")
        other = comm.symmetric_empty(66, "float32")
        private = np.zeros(66, np.float32)
        getattr(comm, collective)([x, other, private][comm.rank], in_place=True)

    for error in run_threads(3, body, errors=True):
        assert isinstance(error, MismatchError), repr(error)
        assert "places in symmetric memory" in str(error)


def test_an_allgather_follows_a_reduce_scatter_at_once():
    p, part, rounds = 3, 4096, 20

    def body(comm):
        x, y = (comm.symmetric_empty(p * part, "float64") for _ in range(2))
        mine = own_rows(p, comm.rank, [part] * p)
        for turn in range(rounds):
            x[:] = turn + comm.rank
            y[mine] = comm.reduce_scatter(x, in_place=True)
            comm.allgather(y, in_place=True)
            assert (y == turn * p + p * (p - 1) / 2).all()

    run_threads(p, body)
