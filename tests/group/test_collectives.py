"""Every collective gives the right numbers: layouts, local forms, dtypes, operations, counts."""

import itertools
import random

import numpy as np
import pytest
from group_cases import DTYPES, LAYOUTS, LOCAL_FORMS, nodes, reduced, size, whole_numbers
from worlds import run_threads

from allreduce.schedules import Collective, algorithms

OPS = ("sum", "avg", "min", "max", "prod", "band", "bor", "bxor")
COUNTS = (0, 1, 7, 1000, 4097, 70_001, 300_007)


def allowed(dtype: str, op: str) -> bool:
    floating = dtype.startswith("float")
    return floating if op == "avg" else not floating or op in ("sum", "min", "max", "prod")


def check(comm, dtype: str, op: str, count: int, algo: str, x: np.ndarray | None = None) -> None:
    inputs = whole_numbers(dtype, op, count, comm.world_size)
    x = inputs[comm.rank].copy() if x is None else x
    x[...] = inputs[comm.rank].reshape(x.shape)
    assert comm.allreduce(x, op, algo) is x
    np.testing.assert_array_equal(x.ravel(), reduced(op, inputs))


def sample() -> list[tuple]:
    """(dtype, op, count, algorithm), shuffled by a fixed seed."""
    product = [
        case
        for case in itertools.product(DTYPES, OPS, COUNTS, ["auto", *algorithms("allreduce")])
        if allowed(*case[:2])
    ]
    random.Random(7).shuffle(product)
    return product


@pytest.mark.parametrize("local", LOCAL_FORMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_allreduce(layout, local):
    place = list(LAYOUTS).index(layout) * len(LOCAL_FORMS) + LOCAL_FORMS.index(local)
    cases = sample()[place * 10 : place * 10 + 10]
    cases += [("float32", "avg", count, "halving_doubling") for count in COUNTS]

    def body(comm):
        assert (comm.local_size, comm.num_nodes) == (
            nodes(layout).count(comm.node),
            max(nodes(layout)) + 1,
        )
        for case in cases:
            check(comm, *case)

    run_threads(size(layout), body, nodes=nodes(layout), local=local)


@pytest.mark.parametrize(("layout", "mebibytes"), [("1x2", 65), ("1x4", 33), ("2x2", 65)])
def test_buffers_that_no_cache_holds(layout, mebibytes):
    # From 128 MiB a node on copies pass by the caches. The end is no whole line.
    count = (mebibytes << 18) + 5

    def body(comm):
        memory = np.empty(count + 3, np.float32)
        memory[[0, 1, -1]] = 7.0
        x = memory[2:-1]  # begins within a vector
        x[:] = np.arange(count, dtype=np.float32) % 1000 + comm.rank
        comm.allreduce(x)
        p = comm.world_size
        want = np.arange(count, dtype=np.float32) % 1000 * p + p * (p - 1) // 2
        np.testing.assert_array_equal(x, want)
        assert (memory[[0, 1, -1]] == 7.0).all()

    run_threads(size(layout), body, nodes=nodes(layout))


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("local", LOCAL_FORMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_allreduce_of_the_whole_product(layout, local):
    def body(comm):
        for case in sample():
            check(comm, *case)

    run_threads(size(layout), body, nodes=nodes(layout), local=local, timeout=500.0)


@pytest.mark.parametrize("rails", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("layout", ["2x4", "4+2", "3+1+2", "1x4"])
def test_allreduce_on_some_rails(layout, rails):
    def body(comm):
        for count in (5, 4097, 70_001):
            check(comm, "float32", "sum", count, "ring")

    run_threads(size(layout), body, nodes=nodes(layout), rails=rails)


@pytest.mark.parametrize("layout", ["1x1", "1x3", "1x4", "2x1", "2x2", "2x4", "2+1", "3+1+2"])
@pytest.mark.parametrize("local", LOCAL_FORMS)
def test_allreduce_in_symmetric_memory(layout, local):
    def body(comm):
        for dtype, count in (("float32", 1), ("int64", 4097), ("float32", 600_001)):
            x = comm.symmetric_empty(count, dtype)
            for op in ("sum", "max", "min"):
                check(comm, dtype, op, count, "halving_doubling", x)
        whole = comm.symmetric_empty((40, 1000), "float64")
        check(comm, "float64", "avg", 20_000, "ring", whole[10:30])  # a part of it
        assert not whole[:10].any()
        assert not whole[30:].any()

    run_threads(size(layout), body, nodes=nodes(layout), local=local)


def test_symmetric_and_private_buffers_take_turns():
    def body(comm):
        shared = comm.symmetric_empty(50_000)
        private = np.empty(50_000, np.float32)
        for i in range(30):
            check(comm, "float32", "sum", 50_000, "auto", shared if i % 3 else private)

    run_threads(4, body, nodes=2)


@pytest.mark.parametrize("layout", ["1x2", "1x4", "2x2", "4x2", "2+1"])
def test_counts_of_nothing_come_between(layout):
    # A run of no elements waits for nobody: ranks get far ahead of each other.
    def body(comm):
        x = np.ones(8, np.float32)
        for i in range(400):
            n = (8, 0, 0, 0, 3, 0, 0)[i % 7]
            x[:] = 1
            comm.allreduce(x[:n])
            assert (x[:n] == comm.world_size).all()

    run_threads(size(layout), body, nodes=nodes(layout))


@pytest.mark.parametrize("layout", ["1x1", "1x3", "2x2", "2x1", "3+1+2", "scattered"])
@pytest.mark.parametrize("local", LOCAL_FORMS)
@pytest.mark.parametrize("rows", [0, 1, 5, 3000])
def test_the_other_collectives(layout, local, rows):
    p = size(layout)
    parts = [np.arange(rows * 3, dtype=np.int32).reshape(rows, 3) + 1000 * r for r in range(p)]
    inputs = [np.arange(p * rows, dtype=np.float64) * (r + 1) for r in range(p)]

    def body(comm):
        mine = slice(comm.rank * rows, (comm.rank + 1) * rows)
        for algo in ("auto", *algorithms("allgather")):
            got = comm.allgather(parts[comm.rank], algo)
            np.testing.assert_array_equal(got, np.concatenate(parts))
        for algo in ("auto", *algorithms("reduce_scatter")):
            own = inputs[comm.rank].copy()
            for op in ("sum", "max", "avg"):
                want = reduced(op, inputs) if op != "avg" else np.sum(inputs, 0) / p
                np.testing.assert_array_equal(comm.reduce_scatter(own, op, algo), want[mine])
            np.testing.assert_array_equal(own, inputs[comm.rank])
        for root in {0, p // 2, p - 1}:
            check_rooted(comm, parts, inputs, root)
        comm.barrier()

    run_threads(p, body, nodes=nodes(layout), local=local)


def check_rooted(comm, parts, inputs, root: int) -> None:
    for algo in ("auto", *algorithms("broadcast")):
        x = parts[comm.rank].copy()
        assert comm.broadcast(x, root, algo) is x
        np.testing.assert_array_equal(x, parts[root])
    for algo in ("auto", *algorithms("reduce")):
        for op in ("sum", "avg"):
            x = inputs[comm.rank].copy()
            assert comm.reduce(x, op, root, algo) is x
            want = np.sum(inputs, 0) / (comm.world_size if op == "avg" else 1)
            np.testing.assert_array_equal(x, want if comm.rank == root else inputs[comm.rank])
    for algo in ("auto", *algorithms("gather")):
        got = comm.gather(parts[comm.rank], root, algo)
        if comm.rank == root:
            np.testing.assert_array_equal(got, np.concatenate(parts))
        else:
            assert got is None


@pytest.mark.parametrize("layout", ["1x4", "2x2", "8x1", "3+1+2"])
@pytest.mark.parametrize("local", LOCAL_FORMS)
def test_nobody_leaves_a_barrier_before_all_have_entered(layout, local):
    entered = [0] * size(layout)

    def body(comm):
        rng = random.Random(comm.rank)
        for i in range(1, 60):
            if rng.random() < 0.1:
                comm._work_of_its_own = sum(range(20_000))  # somebody is late
            entered[comm.rank] = i
            comm.barrier()
            assert min(entered) >= i

    run_threads(size(layout), body, nodes=nodes(layout), local=local)


@pytest.mark.parametrize("layout", ["1x1", "1x3", "2x2"])
def test_a_scalar_is_an_array_of_one(layout):
    def body(comm):
        x = np.array(comm.rank + 1.0)
        comm.allreduce(x)
        ranks = comm.allgather(np.array(comm.rank))
        return float(x), ranks.tolist()

    p = size(layout)
    assert run_threads(p, body, nodes=nodes(layout)) == [(p * (p + 1) / 2, list(range(p)))] * p


def test_traffic_says_what_travelled_where():
    def body(comm):
        x = np.ones(1 << 20, np.float32)
        before = comm.traffic()
        comm.allreduce(x, algo="halving_doubling")
        after = comm.traffic()
        return {key: after[key] - before[key] for key in after}

    mebi = 1 << 22  # bytes of the buffer
    inside = run_threads(4, body, nodes=1)
    assert [row["network_bytes"] for row in inside] == [0] * 4
    assert all(row["shared_memory_bytes"] >= 1.5 * mebi for row in inside)  # 2 (p-1)/p
    for row in run_threads(4, body, nodes=2):  # each rank sends its half of the buffer once
        assert mebi / 2 <= row["network_bytes"] < mebi / 2 * 1.01
    for row in run_threads(4, body, nodes=4):
        assert 1.5 * mebi <= row["network_bytes"] < 1.5 * mebi * 1.01
        assert row["shared_memory_bytes"] == 0


def test_measured_groups_choose_alike_and_explain_themselves():
    def body(comm):
        assert "alpha" in comm.explain(1 << 20)
        return [comm._group.choose(Collective.allreduce, 1 << k) for k in range(4, 28)]

    rows = run_threads(4, body, nodes=2, measure=True)
    assert rows == [rows[0]] * 4
