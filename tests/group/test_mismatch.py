"""Ranks that disagree: the same typed error on all of them, with both calls in words, soon."""

import contextlib
import threading
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


SIZES = {
    "small": (10, 11),
    "small into large": (10, 500_000),
    "large into small": (500_000, 10),
    "large": (500_000, 500_001),
}
ONE_WAY = {
    "broadcast": (lambda comm, x: comm.broadcast(x, root=0),) * 2,
    "message": (lambda comm, x: comm.send(x, 1), lambda comm, x: comm.recv(x, 0)),
}


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("what", ONE_WAY)
@pytest.mark.parametrize("layout", ["1x2", "2x1"])
def test_who_sends_another_size_hears_of_it_too(what, sizes, layout):
    """In the call, or in the next one: a small send is over before anybody has received it."""

    def body(comm):
        ONE_WAY[what][comm.rank](comm, np.ones(SIZES[sizes][comm.rank]))
        assert comm.rank == 0
        comm.barrier()

    errors = run_threads(2, body, nodes=nodes(layout), errors=True, timeout=20.0)
    assert [type(error) for error in errors] == [MismatchError] * 2, errors
    for error in errors:
        assert all(f"[{count}]" in str(error) for count in SIZES[sizes]), error


@pytest.mark.parametrize("what", ONE_WAY)
@pytest.mark.parametrize("layout", ["1x2", "2x1"])
def test_a_sender_that_closes_logs_what_it_has_not_met(what, layout, caplog):
    told = threading.Event()

    def body(comm):
        if comm.rank == 1:
            with pytest.raises(MismatchError):
                ONE_WAY[what][1](comm, np.ones(11))
            told.set()
            return
        ONE_WAY[what][0](comm, np.ones(10))
        assert told.wait(20)
        comm.close()
        comm.close()

    run_threads(2, body, nodes=nodes(layout))
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(said) == 1, said
    assert "rank 0 closes a group that has failed: ranks disagree" in said[0]


SHAPES = {
    "turned": ((2, 3), (3, 2)),
    "flat": ((6,), (2, 3)),
    "a dimension of one": ((6,), (1, 6)),
    "a scalar": ((), (1,)),
}


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("collective", ["allreduce", "broadcast", "reduce"])
@every_layout
def test_another_shape_is_a_mismatch(collective, shapes, layout, local):
    def body(comm):
        x = np.ones(SHAPES[shapes][comm.rank == 1], np.float32)
        getattr(comm, collective)(x)
        comm.barrier()

    # Of ranks that only send to others the next call may tell first, and not in detail.
    expect_mismatch(layout, local, body, *(["shapes"] if collective == "allreduce" else []))


@every_layout
def test_another_shape_of_a_call_that_is_known_is_a_mismatch(layout, local):
    """Plans are remembered; the shape is part of what they are remembered by."""

    def body(comm):
        for shape in ((2, 3), (6,), (2, 3)):
            comm.allreduce(np.ones(shape, np.float32))
            comm.allreduce(np.ones(shape, np.float32), async_op=True).wait()
        comm.allreduce(np.ones((6,) if comm.rank == 1 else (2, 3), np.float32))
        comm.barrier()

    expect_mismatch(layout, local, body, "shapes")


@pytest.mark.parametrize("layout", ["1x2", "2x1"])
def test_parts_of_a_whole_may_have_other_shapes(layout):
    def body(comm):
        rows = comm.allgather(np.full((2, 3) if comm.rank else (2, 1, 3), comm.rank + 1.0))
        part = comm.reduce_scatter(np.ones((4, 3) if comm.rank else (4, 3, 1)))
        if comm.rank == 0:
            comm.send(np.ones((2, 3)), 1)
        else:
            comm.recv(np.ones(6), 0)
        return float(rows.sum()), float(part.sum())

    assert run_threads(2, body, nodes=nodes(layout)) == [(18.0, 12.0)] * 2
