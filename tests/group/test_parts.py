"""Collectives in which each rank has a part, even and uneven ones, against NumPy."""

import time

import numpy as np
import pytest
from group_cases import nodes, size
from worlds import run_threads

from allreduce import errors
from allreduce.errors import Error, MismatchError, UsageError
from allreduce.schedules import algorithms

LAYOUTS = ("1x1", "1x3", "2x1", "2x2", "3+1+2", "scattered")
SOON = 8.0  # seconds


def split(x, counts):
    return np.split(x, np.cumsum(counts)[:-1])


def uneven(p: int, seed: int, most: int = 50) -> list[list[int]]:
    """Rows of each rank: random ones, with a rank that has none, and all with one rank."""
    rng = np.random.default_rng([p, seed])
    counts = rng.integers(0, most, p)
    counts[seed % p] = 0
    alone = [0] * p
    alone[seed % p] = most
    return [counts.tolist(), alone, [0] * p, [most] * p]


def whole(rows: int, shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, rows]).integers(0, 2, (rows, *shape)).astype(dtype)


@pytest.mark.parametrize("rows", [0, 1, 5, 9000])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_scatter_gives_each_rank_its_part(layout, rows):
    p = size(layout)

    def body(comm):
        for root in {0, p // 2, p - 1}:
            x = np.arange(p * rows * 3, dtype=np.float32).reshape(p * rows, 3) + root
            kept = x.copy()
            for algo in ("auto", *algorithms("scatter")):
                out = np.full((rows, 3), -1, np.float32)
                assert comm.scatter(out, x if comm.rank == root else None, root, algo) is out
                np.testing.assert_array_equal(out, split(kept, [rows] * p)[comm.rank])
            np.testing.assert_array_equal(x, kept)

    run_threads(p, body, nodes=nodes(layout))


@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (4, 5)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_uneven_parts_of_every_collective(layout, shape):
    p = size(layout)

    def body(comm):
        for seed, rows in enumerate(uneven(p, len(shape))):
            x = whole(sum(rows), shape, "int32", seed)
            mine = split(x, rows)[comm.rank]
            for algo in ("auto", *algorithms("allgather")):
                np.testing.assert_array_equal(comm.allgather(mine, algo, rows=rows), x)
            for algo in ("auto", *algorithms("reduce_scatter")):
                got = comm.reduce_scatter(x + comm.rank, "sum", algo, rows=rows)
                np.testing.assert_array_equal(got, mine * p + sum(range(p)))
            for algo in ("auto", *algorithms("gather")):
                got = comm.gather(mine, p - 1, algo, rows=rows)
                if comm.rank == p - 1:
                    np.testing.assert_array_equal(got, x)
                else:
                    assert got is None
            for algo in ("auto", *algorithms("scatter")):
                out = np.full_like(mine, -1)
                comm.scatter(out, x if comm.rank == p // 2 else None, p // 2, algo, rows=rows)
                np.testing.assert_array_equal(out, mine)

    run_threads(p, body, nodes=nodes(layout))


@pytest.mark.parametrize("local", ["rs_ag", "none"])
@pytest.mark.parametrize("op", ["sum", "avg", "max"])
def test_uneven_parts_are_reduced_by_every_operation(op, local):
    def body(comm):
        rows = [3, 0, 5000, 17]
        inputs = [whole(5020, (2,), "float64", r) * 4 for r in range(4)]
        got = comm.reduce_scatter(inputs[comm.rank], op, rows=rows)
        want = np.max(inputs, 0) if op == "max" else np.sum(inputs, 0) / (4 if op == "avg" else 1)
        np.testing.assert_array_equal(got, split(want, rows)[comm.rank])

    run_threads(4, body, nodes=2, local=local)


@pytest.mark.parametrize("shape", [(), (3,)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_place_nothing_else_is_written(layout, shape):
    p = size(layout)

    def body(comm):
        for rows in [None, *uneven(p, 1)]:
            counts = rows or [9] * p
            begin = sum(counts[: comm.rank])
            own = slice(begin, begin + counts[comm.rank])
            every = [whole(sum(counts), shape, "float32", r) for r in range(p)]
            x = every[comm.rank].copy()
            mine = comm.reduce_scatter(x, rows=rows, in_place=True)
            np.testing.assert_array_equal(mine, np.sum(every, 0)[own])
            assert mine.size == 0 or np.shares_memory(mine, x)
            np.testing.assert_array_equal(x[own], mine)

            y = np.full_like(x, -1)
            y[own] = every[0][own]
            assert comm.allgather(y, rows=rows, in_place=True) is y
            np.testing.assert_array_equal(y, every[0])

    run_threads(p, body, nodes=nodes(layout))


@pytest.mark.parametrize("layout", ["1x2", "2x1"])
def test_names_of_a_reduce_scatter_must_agree(layout):
    def body(comm):
        comm.reduce_scatter(np.zeros(4), name="a")
        comm.reduce_scatter(np.zeros(4), name=f"of rank {comm.rank}")

    raised = run_threads(2, body, errors=True, timeout=20.0, nodes=nodes(layout))
    assert [type(error) for error in raised] == [MismatchError] * 2, raised


@pytest.mark.parametrize("rows", [0, 1, 7, 20_000])
@pytest.mark.parametrize("dtype", ["uint8", "float64", "bool"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_alltoall_of_even_parts(layout, dtype, rows):
    p = size(layout)
    inputs = [whole(p * rows, (3,) if rows < 10 else (), dtype, r) for r in range(p)]

    def body(comm):
        x = inputs[comm.rank].copy()
        got = comm.alltoall(x)
        want = [split(inputs[r], [rows] * p)[comm.rank] for r in range(p)]
        np.testing.assert_array_equal(got, np.concatenate(want))
        np.testing.assert_array_equal(x, inputs[comm.rank])
        assert got.dtype == x.dtype

    run_threads(p, body, nodes=nodes(layout))


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_alltoall_of_uneven_parts(layout, asked):
    p = size(layout)
    rng = np.random.default_rng([p, 5])
    cases = [rng.integers(0, most, (p, p)) for most in (1, 2, 9, 6000)]
    cases.append(np.diag([7] * p))  # each rank to itself only
    cases.append(np.eye(p, k=1, dtype=int) * 30)  # and to the next only

    def body(comm):
        for counts in cases:
            inputs = [whole(counts[r].sum(), (2,), "int16", r) for r in range(p)]
            recv_rows = None if asked else counts[:, comm.rank].tolist()
            got = comm.alltoall(inputs[comm.rank], counts[comm.rank].tolist(), recv_rows)
            want = [split(inputs[r], counts[r])[comm.rank] for r in range(p)]
            np.testing.assert_array_equal(got, np.concatenate(want))

    run_threads(p, body, nodes=nodes(layout))


@pytest.mark.parametrize("segment_bytes", [64, 4096])
@pytest.mark.parametrize("layout", ["1x4", "2x2"])
def test_parts_of_many_segments(layout, segment_bytes):
    def body(comm):
        rows = [100, 7000, 0, 1]
        x = whole(sum(rows), (), "int64")
        np.testing.assert_array_equal(
            comm.allgather(split(x, rows)[comm.rank], rows=rows),
            comm.alltoall(np.tile(x, 4))[:7101],
        )

    run_threads(4, body, nodes=nodes(layout), segment_bytes=segment_bytes)


def call_alltoall(comm, sends: int, expects: int) -> None:
    """Rank 0 sends so many rows to rank 1, which expects another number; all others one."""
    send, recv = [1] * comm.world_size, [1] * comm.world_size
    if comm.rank == 0:
        send[1] = sends
    if comm.rank == 1:
        recv[0] = expects
    comm.alltoall(np.zeros(sum(send), np.float32), send, recv, timeout=1.0)


@pytest.mark.parametrize(
    ("sends", "expects", "words"),
    [
        (5, 7, ("[5]", "[7]")),
        (7, 5, ("[7]", "[5]")),
        (100_000, 7, ("[100000]", "[7]")),
        (7, 100_000, ("[7]", "[100000]")),
        (0, 3, ("[0]", "[3]")),
        (3, 0, ("[3]", "[0]")),
        (0, 100_000, ("[0]", "[100000]")),
        (100_000, 0, ("[100000]", "[0]")),
    ],
)
@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("layout", ["1x2", "2x1", "1x3", "2x2"])
def test_an_alltoall_whose_ends_disagree_is_a_typed_error(layout, lanes, sends, expects, words):
    def body(comm):
        call_alltoall(comm, sends, expects)
        for _ in range(lanes + 1):  # who got all that it expects hears of it on the same lane
            comm.alltoall(np.zeros(comm.world_size), timeout=2.0)

    begin = time.monotonic()
    raised = run_threads(
        size(layout), body, errors=True, timeout=20.0, nodes=nodes(layout), lanes=lanes
    )
    assert time.monotonic() - begin < SOON
    for error in raised:
        assert isinstance(error, MismatchError), raised
        for word in ("alltoall", *words):
            assert word in str(error)


@pytest.mark.parametrize("collective", ["allgather", "gather", "scatter", "reduce_scatter"])
@pytest.mark.parametrize("layout", ["1x3", "3x1", "2+1"])
def test_ranks_that_split_otherwise_are_a_mismatch(layout, collective):
    def body(comm):
        rows = [4, 4, 2] if comm.rank == 2 else [4, 3, 3]
        if comm.rank == 1 and collective != "reduce_scatter":
            rows = [5, 3, 2]
        x = np.zeros(10)
        if collective == "scatter":
            comm.scatter(x[: rows[comm.rank]], x if comm.rank == 0 else None, rows=rows)
        elif collective == "reduce_scatter":
            comm.reduce_scatter(x, rows=rows)
        else:
            getattr(comm, collective)(x[: rows[comm.rank]], rows=rows)
        for _ in range(3):
            comm.barrier()

    begin = time.monotonic()
    raised = run_threads(3, body, errors=True, timeout=20.0, nodes=nodes(layout))
    assert time.monotonic() - begin < SOON
    assert [type(error) for error in raised] == [MismatchError] * 3, raised


X = np.zeros((6, 2))
BAD = {
    "too few rows": (lambda c: c.allgather(X, rows=[6]), "rows on rank .: must be 2 numbers"),
    "negative rows": (lambda c: c.allgather(X, rows=[6, -1]), "rows on rank .: .*0 or more"),
    "rows of another": (lambda c: c.gather(X, rows=[5, 5]), "give this rank 5 rows.* has 6"),
    "rows that do not add up": (
        lambda c: c.reduce_scatter(X, rows=[6, 1]),
        r"rows on rank .: add up to 7, and x has shape \(6, 2\)",
    ),
    "no even split": (lambda c: c.alltoall(np.zeros(5)), "does not split over 2 ranks"),
    "send_rows that do not add up": (lambda c: c.alltoall(X, [1, 1]), "send_rows .* add up to 2"),
    "too few send_rows": (lambda c: c.alltoall(X, [6]), "send_rows on rank .: must be 2"),
    "negative recv_rows": (lambda c: c.alltoall(X, [3, 3], [-1, 3]), "recv_rows on rank ."),
    "another number from itself": (
        lambda c: c.alltoall(X, [3, 3], [4, 4]),
        "sends itself 6 elements, and expects 8",
    ),
    "a scalar": (lambda c: c.alltoall(np.array(1.0)), r"shape \(\) does not split"),
    "no algorithm": (lambda c: c.scatter(X, np.zeros((12, 2)), c.rank, "ring"), "scatter has no"),
    "no x on the root": (lambda c: c.scatter(X, None, c.rank), "x on rank .: the root"),
    "x of another shape": (lambda c: c.scatter(X, X, c.rank), r"shape \(6, 2\), .*\(12, 2\)"),
    "x of another dtype": (
        lambda c: c.scatter(X, np.zeros((12, 2), np.int32), c.rank),
        "is int32 of shape .* float64 of shape",
    ),
    "no such root": (lambda c: c.scatter(X, None, 2), "root 2 is outside this group of 2 ranks"),
    "read-only out": (
        lambda c: c.scatter(np.broadcast_to(X, (6, 2)), None, 1 - c.rank),
        "out on rank .: is read-only",
    ),
    "a list": (lambda c: c.alltoall([1.0, 2.0]), "x on rank .: a list is no array"),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("layout", ["1x2", "2x1"])
def test_an_argument_that_cannot_be_is_refused_and_the_group_goes_on(layout, what):
    call, words = BAD[what]

    def body(comm):
        with pytest.raises(UsageError, match=words):
            call(comm)
        return comm.alltoall(np.array([0, 1]) + 10 * comm.rank).tolist()

    assert run_threads(2, body, nodes=nodes(layout)) == [[0, 10], [1, 11]]


def test_a_scatter_without_x_ends_on_the_other_ranks_too():
    def body(comm):
        with comm:  # the root's error reaches all who wait for it
            comm.scatter(np.zeros(1000), None, root=0)

    raised = run_threads(3, body, errors=True, timeout=20.0)
    assert isinstance(raised[0], UsageError)
    assert all(isinstance(error, (Error, errors.AbortedError)) for error in raised), raised


@pytest.mark.parametrize("layout", ["1x3", "2+1"])
def test_torch_tensors_come_back_as_tensors(layout):
    torch = pytest.importorskip("torch")

    def body(comm):
        p, rank, rows = 3, comm.rank, [2, 0, 3]
        x = torch.arange(5 * 2, dtype=torch.bfloat16).reshape(5, 2)
        mine = x.split(rows)[rank].clone()
        results = [(comm.allgather(mine, rows=rows), x)]
        results.append((comm.reduce_scatter(x.clone(), "max", rows=rows), mine))
        out = torch.zeros_like(mine)
        assert comm.scatter(out, x if rank == 2 else None, 2, rows=rows) is out
        results.append((out, mine))
        gathered = comm.gather(mine, 1, rows=rows)
        assert (gathered is None) == (rank != 1)
        if rank == 1:
            results.append((gathered, x))
        even = torch.arange(p, dtype=torch.int64) + 10 * rank
        results.append((comm.alltoall(even), torch.arange(p) * 10 + rank))
        results.append((comm.alltoall(x, rows), torch.cat([mine] * 3)))
        if rank != 2:
            y = torch.full((4,), float(rank))
            work = comm.isend(y, 1 - rank)
            z = torch.empty(4)
            comm.recv(z, 1 - rank)
            work.wait()
            results.append((z, torch.full((4,), 1.0 - rank)))
        for got, want in results:
            assert isinstance(got, torch.Tensor)
            assert got.dtype == want.dtype
            assert torch.equal(got, want)

    run_threads(3, body, nodes=nodes(layout))
