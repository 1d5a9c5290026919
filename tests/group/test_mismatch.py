"""Ranks that disagree: the same typed error on all of them, with both calls in words, soon."""

import contextlib
import time

import numpy as np
import pytest
from group_cases import SOME_LAYOUTS, nodes, size
from worlds import run_threads

from allreduce.errors import AbortedError, MismatchError, UsageError

SOON = 8.0  # seconds; a disagreement is told after one at the latest
every_layout = pytest.mark.parametrize(("layout", "local"), SOME_LAYOUTS)


# What two ranks may disagree about: rank 1 makes the second call, all others the first.
def allreduce(comm, count=1000, dtype="float32", **options):
    return comm.allreduce(np.ones(count, dtype), **options)


DISAGREEMENTS = {
    "count": ({}, {"count": 999}, "float32[1000]", "float32[999]"),
    "large count": ({"count": 100_000}, {"count": 200_000}, "[100000]", "[200000]"),
    "small and large": ({"count": 10}, {"count": 200_000}, "[10]", "[200000]"),
    "nothing": ({}, {"count": 0}, "[1000]", "[0]"),
    "dtype": ({}, {"dtype": "int32"}, "float32[1000]", "int32[1000]"),
    "size of dtype": ({}, {"dtype": "float64"}, "float32[1000]", "float64[1000]"),
    "op": ({}, {"op": "max"}, "sum", "max"),
    "algorithm": ({"algo": "ring"}, {"algo": "bcube"}, "ring", "bcube"),
    "name": ({"name": "layer1"}, {"name": "layer2"}, "different names", ""),
}


def expect_mismatch(layout: str, local: str, body, *words: str, lanes: int = 2) -> None:
    begin = time.monotonic()
    where = {"nodes": nodes(layout), "local": local, "lanes": lanes}
    errors = run_threads(size(layout), body, errors=True, timeout=20.0, **where)
    assert time.monotonic() - begin < SOON
    assert [type(error) for error in errors] == [MismatchError] * size(layout), errors
    for error in errors:
        assert str(error).count(" called ") == 2, error
        for word in words:
            assert word in str(error)


@pytest.mark.parametrize("what", DISAGREEMENTS)
@every_layout
def test_ranks_that_disagree_hear_what_both_called(what, layout, local):
    ours, theirs, *words = DISAGREEMENTS[what]

    def body(comm):
        allreduce(comm, **(theirs if comm.rank == 1 else ours))
        comm.barrier()

    expect_mismatch(layout, local, body, *words)


@pytest.mark.parametrize("what", ["count", "dtype", "algorithm"])
@pytest.mark.parametrize("lanes", [1, 2])
@every_layout
def test_disagreements_in_the_background_are_the_same_error(what, lanes, layout, local):
    ours, theirs, *words = DISAGREEMENTS[what]

    def body(comm):
        mine = theirs if comm.rank == 1 else ours
        works = []
        with contextlib.suppress(AbortedError):  # the group may have failed before the last call
            works.extend(
                allreduce(comm, async_op=True, **(mine if i == 2 else {})) for i in range(5)
            )
        for work in works:
            work.wait()
        comm.barrier()

    # On another lane the next run may tell first, which knows only that an earlier one differed.
    expect_mismatch(layout, local, body, *(words if lanes == 1 else ()), lanes=lanes)


@every_layout
def test_another_order_of_calls_is_a_mismatch(layout, local):
    def body(comm):
        for count in (5, 7) if comm.rank == 1 else (7, 5):
            allreduce(comm, count)
        comm.barrier()

    expect_mismatch(layout, local, body, "[5]", "[7]")


@every_layout
def test_a_call_too_few_is_a_mismatch(layout, local):
    def body(comm):
        if comm.rank != 1:
            allreduce(comm, 17)
        comm.barrier()

    expect_mismatch(layout, local, body, "allreduce(float32[17]", "barrier")


@pytest.mark.parametrize("other", ["broadcast", "reduce", "allgather", "reduce_scatter"])
@every_layout
def test_another_collective_is_a_mismatch(other, layout, local):
    def body(comm):
        x = np.ones(comm.world_size * 100, np.float32)
        getattr(comm, other if comm.rank == 1 else "allreduce")(x)
        comm.barrier()

    expect_mismatch(layout, local, body, f"called {other}(", "called allreduce(")


@pytest.mark.parametrize("collective", ["broadcast", "reduce", "gather"])
@every_layout
def test_another_root_is_a_mismatch(collective, layout, local):
    # Nobody waits for two roots that only send: the next collective tells, and not in detail.
    def body(comm):
        getattr(comm, collective)(np.ones(100), root=1 if comm.rank == 1 else 0)
        comm.barrier()

    expect_mismatch(layout, local, body, "root")


@pytest.mark.parametrize(
    ("layout", "local"), [("1x2", "rs_ag"), ("2x2", "rs_ag"), ("4x2", "rs_ag")]
)
def test_another_place_in_symmetric_memory_is_a_mismatch(layout, local):
    def body(comm):
        x = comm.symmetric_empty(20_000)
        comm.barrier()
        part = x[16:10_016] if comm.rank == 1 else x[:10_000]
        comm.allreduce(part)
        comm.barrier()

    expect_mismatch(layout, local, body, "places in symmetric memory")


@pytest.mark.parametrize(
    ("layout", "local"), [("1x2", "rs_ag"), ("2x2", "rs_ag"), ("4x2", "rs_ag")]
)
def test_a_private_buffer_against_symmetric_ones_is_a_mismatch(layout, local):
    def body(comm):
        x = comm.symmetric_empty(20_000)
        comm.barrier()
        comm.allreduce(np.ones(20_000, np.float32) if comm.rank == 1 else x)
        comm.barrier()

    expect_mismatch(layout, local, body, "places in symmetric memory")


OPTIONS = {
    "rails": ({"rails": 1}, {"rails": 2}),
    "local": ({"local": "rs_ag"}, {"local": "none"}),
    "form": ({"local": "rs_ag"}, {"local": "reduce_bcast"}),
    "lanes": ({"lanes": 1}, {"lanes": 2}),
    "segment_bytes": ({"segment_bytes": 1024}, {"segment_bytes": 2048}),
    "nodes": ({"nodes": 1}, {"nodes": 2}),
}


@pytest.mark.parametrize("odd", [1, 3])
@pytest.mark.parametrize("what", OPTIONS)
def test_options_that_differ_are_an_error_on_every_rank(what, odd):
    ours, theirs = OPTIONS[what]

    def body(comm):
        comm.allreduce(np.ones(100_000, np.float32), algo="ring")

    begin = time.monotonic()
    errors = run_threads(
        4,
        body,
        per_rank=lambda rank: theirs if rank == odd else ours,
        errors=True,
        timeout=20.0,
        **({} if what == "nodes" else {"nodes": 2}),
    )
    assert time.monotonic() - begin < SOON
    assert all(isinstance(error, (MismatchError, UsageError)) for error in errors), errors
