"""What hypothesis draws (layout, collective, dtype, counts, algorithm) agrees with NumPy."""

import numpy as np
import pytest
from group_cases import DTYPES, LOCAL_FORMS, nodes, reduced, size, whole_numbers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from worlds import SANITIZED, run_threads

from allreduce.schedules import algorithms

LAYOUTS = ("1x1", "1x2", "2x1", "1x3", "2x2", "2+1", "scattered")
OPS = ("sum", "avg", "min", "max", "prod", "band", "bor", "bxor")
PARTED = ("allgather", "gather", "scatter", "reduce_scatter")

worlds = st.fixed_dictionaries(
    {
        "layout": st.sampled_from(LAYOUTS),
        "local": st.sampled_from(LOCAL_FORMS),
        "lanes": st.integers(1, 3),
        "segment_bytes": st.sampled_from([64, 1000, 256 << 10]),
    }
)
# Mostly small ones, and some on both sides of what goes another way.
counts = st.one_of(st.integers(0, 40), st.sampled_from([2047, 2049, 8193, 30_000]))
shapes = st.lists(st.integers(0, 4), max_size=2).map(tuple)

drawn = settings(
    max_examples=10 if SANITIZED else 100,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def run(world: dict, body) -> None:
    options = {key: value for key, value in world.items() if key != "layout"}
    where = nodes(world["layout"])
    run_threads(size(world["layout"]), body, nodes=where, timeout=20.0, **options)


def allowed(dtype: str, op: str) -> bool:
    floating = dtype.startswith("float")
    return floating if op == "avg" else not floating or op in ("sum", "min", "max", "prod")


def array(dtype: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).integers(0, 2, shape).astype(dtype)


reductions = st.tuples(st.sampled_from(DTYPES), st.sampled_from(OPS)).filter(
    lambda pair: allowed(*pair)
)


@drawn
@given(worlds, reductions, counts, st.sampled_from(["auto", *algorithms("allreduce")]), st.data())
def test_reductions(world, reduction, count, algo, data):
    dtype, op = reduction
    p = size(world["layout"])
    root = data.draw(st.integers(0, p - 1), "root")
    background = data.draw(st.booleans(), "background")
    inputs = whole_numbers(dtype, op, count, p, 3)
    want = reduced(op, inputs)

    def body(comm):
        x = inputs[comm.rank].copy()
        work = comm.allreduce(x, op, algo, async_op=background)
        y = comm.reduce(inputs[comm.rank].copy(), op, root)
        if background:
            assert work.wait() is x
        np.testing.assert_array_equal(x, want)
        np.testing.assert_array_equal(y, want if comm.rank == root else inputs[comm.rank])

    run(world, body)


@st.composite
def parted(draw):
    """(world, collective, algorithm, rows of each rank, root)."""
    world, collective = draw(worlds), draw(st.sampled_from(PARTED))
    p = size(world["layout"])
    rows = draw(
        st.one_of(
            st.integers(0, 300).map(lambda n: [n] * p), st.lists(counts, min_size=p, max_size=p)
        )
    )
    algo = draw(st.sampled_from(["auto", *algorithms(collective)]))
    return world, collective, algo, rows, draw(st.integers(0, p - 1))


@drawn
@given(parted(), st.sampled_from(DTYPES), shapes)
def test_parts(case, dtype, shape):
    world, collective, algo, rows, root = case
    p = size(world["layout"])
    x = array(dtype, (sum(rows), *shape), 1)
    parts = np.split(x, np.cumsum(rows)[:-1])
    given_rows = None if len(set(rows)) == 1 else rows

    def body(comm):
        mine = parts[comm.rank].copy()
        if collective == "allgather":
            np.testing.assert_array_equal(comm.allgather(mine, algo, rows=given_rows), x)
        elif collective == "gather":
            got = comm.gather(mine, root, algo, rows=given_rows)
            assert (got is None) == (comm.rank != root)
            if got is not None:
                np.testing.assert_array_equal(got, x)
        elif collective == "scatter":
            out = np.empty_like(mine)
            comm.scatter(out, x if comm.rank == root else None, root, algo, rows=given_rows)
            np.testing.assert_array_equal(out, mine)
        else:
            got = comm.reduce_scatter(x, "max", algo, rows=given_rows)
            np.testing.assert_array_equal(got, mine)
            assert got.shape == (rows[comm.rank], *shape)

    run(world, body)
    assert p == len(rows)


@st.composite
def exchanges(draw):
    world = draw(worlds)
    p = size(world["layout"])
    row = st.lists(counts, min_size=p, max_size=p)
    return world, draw(st.lists(row, min_size=p, max_size=p))


@drawn
@given(exchanges(), st.sampled_from(DTYPES), shapes, st.booleans())
def test_alltoall(case, dtype, shape, asked):
    world, rows = case
    inputs = [array(dtype, (sum(row), *shape), r) for r, row in enumerate(rows)]
    parts = [np.split(x, np.cumsum(row)[:-1]) for x, row in zip(inputs, rows, strict=True)]

    def body(comm):
        expected = None if asked else [row[comm.rank] for row in rows]
        got = comm.alltoall(inputs[comm.rank], rows[comm.rank], expected)
        np.testing.assert_array_equal(got, np.concatenate([part[comm.rank] for part in parts]))

    run(world, body)


@st.composite
def conversations(draw):
    """Messages ((source, dest), tag, count, blocking) in the order of their sending."""
    world = draw(worlds.filter(lambda world: size(world["layout"]) > 1))
    p = size(world["layout"])
    pairs = st.tuples(st.integers(0, p - 1), st.integers(1, p - 1))
    pairs = pairs.map(lambda pair: (pair[0], sum(pair) % p))
    message = st.tuples(pairs, st.integers(0, 2), counts, st.booleans())
    return world, draw(st.lists(message, max_size=25)), draw(st.permutations(range(3)))


@drawn
@given(conversations(), st.sampled_from(DTYPES))
def test_messages(case, dtype):
    world, messages, order = case

    def body(comm):
        works = [
            comm.isend(array(dtype, (count,), i), dest, tag)
            for i, ((source, dest), tag, count, _) in enumerate(messages)
            if source == comm.rank
        ]
        mine = [(tag, i) for i, ((_, dest), tag, *_) in enumerate(messages) if dest == comm.rank]
        # By tags in a drawn order; within a tag in the order of sending, which is each source's.
        for tag, i in sorted(mine, key=lambda pair: (order[pair[0]], pair[1])):
            (source, _), _, count, blocking = messages[i]
            x = np.empty(count, dtype)
            if blocking:
                assert comm.recv(x, source, tag) == (source, tag)
            else:
                comm.irecv(x, source, tag).wait()
            np.testing.assert_array_equal(x, array(dtype, (count,), i))
        for work in works:
            work.wait()

    run(world, body)


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "test", [test_reductions, test_parts, test_alltoall, test_messages], ids=lambda t: t.__name__
)
def test_many_examples_of(test):
    settings(drawn, max_examples=2000)(test)()
