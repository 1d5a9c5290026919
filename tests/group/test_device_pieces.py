"""Collectives on large device memory pass through the host piece by piece, with the host's bits."""

import numpy as np
import pytest
from device_memory import a_device
from group_cases import nodes, size
from worlds import run_threads

from allreduce import _C
from allreduce.communicator.arrays import memory_of

PART = 1_000_003  # float32 of each rank: in all some pieces of 4 MiB, and a short one
ROOT = 1
ROOTED = ("broadcast", "reduce", "gather", "scatter")
KINDS = ("reduce_scatter", "allgather", *ROOTED)


@pytest.fixture(autouse=True)
def cpu_runtime(monkeypatch):
    monkeypatch.setenv("ALLREDUCE_DEVICE_RUNTIME", "cpu")


def call(comm, kind: str, array, op: str = "sum", bounds=()) -> None:
    memory = memory_of(array, "x", comm.rank)
    kind, root = _C.Collective.__members__[kind], ROOT if kind in ROOTED else 0
    comm._group.run(**comm._call(kind, memory, op=op, root=root), bounds=list(bounds))


def result(comm, kind: str, values: np.ndarray, bounds: list[int]) -> np.ndarray:
    """What has a meaning for this rank after the call: the rest is scratch."""
    if kind in ("reduce_scatter", "scatter"):
        return values[bounds[comm.rank] : bounds[comm.rank + 1]]
    if kind in ("reduce", "gather") and comm.rank != ROOT:
        return values[:0]
    return values


def check_against_the_host(comm, kind: str, op: str, dtype: str, parts: list[int]) -> None:
    """Call it on device memory and on host memory, and compare what has a meaning."""
    bounds = [0, *np.cumsum(parts).tolist()]
    inputs = np.random.default_rng(comm.rank).normal(size=bounds[-1]).astype(dtype)
    uneven = bounds if len(set(parts)) > 1 else ()
    expected = inputs.copy()
    call(comm, kind, expected, op, uneven)
    with a_device() as device:
        device.busy()
        x = device.array(inputs)
        call(comm, kind, x, op, uneven)
        found = device.read(x)
    np.testing.assert_array_equal(
        result(comm, kind, found, bounds), result(comm, kind, expected, bounds)
    )


@pytest.mark.parametrize("layout", ["1x2", "3x1", "2x2"])
@pytest.mark.parametrize("kind", KINDS)
def test_even_parts(layout, kind):
    p = size(layout)

    def body(comm):
        check_against_the_host(comm, kind, "sum", "float32", [PART] * p)

    run_threads(p, body, nodes=nodes(layout))


@pytest.mark.parametrize("op", ["avg", "max"])
@pytest.mark.parametrize("kind", ["reduce_scatter", "reduce"])
def test_operations(kind, op):
    def body(comm):
        check_against_the_host(comm, kind, op, "float64", [PART] * 3)

    run_threads(3, body, nodes=[0, 0, 1])


@pytest.mark.parametrize("kind", ["reduce_scatter", "allgather", "gather", "scatter"])
def test_uneven_parts_stay_whole(kind):
    def body(comm):
        check_against_the_host(comm, kind, "avg", "float32", [PART, 0, PART + 5])

    run_threads(3, body, nodes=[0, 0, 1])


@pytest.mark.parametrize("kind", ["reduce_scatter", "allgather"])
def test_even_bounds_are_no_bounds(kind):
    """A rank may say them, another leave them out."""

    def body(comm):
        x = np.full(30, comm.rank + 1.0)
        call(comm, kind, x, bounds=[0, 10, 20, 30] if comm.rank == 1 else ())
        want = 6.0 if kind == "reduce_scatter" else comm.rank + 1.0
        assert (x[10 * comm.rank : 10 * comm.rank + 10] == want).all()

    run_threads(3, body)


# For each piece: the copies in and a flag; two waits and the copies out.
@pytest.mark.parametrize(("kind", "copies"), [("reduce_scatter", 2 + 1), ("allgather", 1 + 2)])
def test_what_is_enqueued(kind, copies):
    count, pieces, others = 25 * 2**20 // 4, 7, 6  # others: the same for any number of pieces
    calls = []

    def body(comm):
        with a_device() as device:
            x = device.array(np.ones(count, np.float32))
            comm.barrier()
            before = _C.cpu_num_enqueued()
            comm.barrier()
            call(comm, kind, x)
            comm.barrier()
            calls.append(_C.cpu_num_enqueued() - before)
            comm.barrier()

    run_threads(2, body, nodes=[0, 1])
    assert calls == [2 * (pieces * (copies + 3) + others)] * 2
