"""What nodes really send each other is what the rendered stages say, and the results are right."""

import time

import numpy as np
import pytest
from group_cases import LAYOUTS, nodes
from worlds import run_threads

from allreduce import _C
from allreduce.errors import MismatchError
from allreduce.schedules import parse_collective

LAYOUT_NAMES = ("2x2", "2x4", "4x2", "3+1+2", "interleaved", "scattered")
ALGORITHMS = {
    "reduce_scatter": ("ring", "halving_doubling"),
    "allgather": ("ring", "circulant"),
    "broadcast": ("binomial", "scatter_allgather"),
    "reduce": ("binomial", "reduce_scatter_gather"),
    "gather": ("binomial", "direct"),
    "scatter": ("binomial", "direct"),
    "allreduce": ("ring", "halving_doubling"),
}
ROOT = 1


def call(comm, collective, algo, part):
    """The collective on `part` elements for each rank; what this rank gets, and should get."""
    p, rank = comm.world_size, comm.rank
    whole = np.arange(part * p, dtype=np.float32)
    mine = slice(rank * part, (rank + 1) * part)
    share = p * (p + 1) / 2  # ranks contribute 1, 2, ... times the whole
    x = whole * (rank + 1)
    is_root = rank == ROOT
    calls = {
        "allreduce": lambda: (comm.allreduce(x, algo=algo), whole * share),
        "reduce_scatter": lambda: (comm.reduce_scatter(x, algo=algo), whole[mine] * share),
        "allgather": lambda: (comm.allgather(whole[mine].copy(), algo=algo), whole),
        "broadcast": lambda: (comm.broadcast(x, ROOT, algo=algo), whole * (ROOT + 1)),
        "reduce": lambda: (
            comm.reduce(x, root=ROOT, algo=algo),
            whole * share if is_root else None,
        ),
        "gather": lambda: (
            comm.gather(whole[mine].copy(), ROOT, algo=algo),
            whole if is_root else None,
        ),
        "scatter": lambda: (
            comm.scatter(np.empty(part, np.float32), whole if is_root else None, ROOT, algo=algo),
            whole[mine],
        ),
    }
    return calls[collective]()


def crossing(collective, algo, node_of, rank):
    """The share of the buffer that the rank has to send to other nodes."""
    kind = parse_collective(collective)
    between = _C.build(kind, algo, max(node_of) + 1, node_of[ROOT])
    rails = 1 if collective == "reduce" else min(node_of.count(node) for node in node_of)
    schedule = _C.hierarchical(kind, node_of, between, rails, ROOT)
    chunks = sum(
        hi - lo
        for _, src, dst, lo, hi, _ in schedule.moves().tolist()
        if src == rank and node_of[src] != node_of[dst]
    )
    return chunks / schedule.num_chunks


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("collective", ALGORITHMS)
def test_what_is_sent_is_what_the_stages_say(layout, collective):
    node_of = nodes(layout)
    p = len(node_of)
    part = 16 * 64 * 3  # elements: cut evenly by every schedule here, and by its rails

    def body(comm):
        sent = []
        for algo in ALGORITHMS[collective]:
            totals = []
            for factor in (1, 2):  # headers are alike: the difference is what the elements take
                comm.barrier()
                before = comm.traffic()["network_bytes"]
                found, expected = call(comm, collective, algo, part * factor)
                if expected is not None:
                    np.testing.assert_array_equal(found, expected)
                totals.append(comm.traffic()["network_bytes"] - before)
            sent.append((totals[1] - totals[0]) / (4 * part * p))
        return sent

    for rank, sent in enumerate(run_threads(p, body, nodes=node_of, checksum=False)):
        for algo, share in zip(ALGORITHMS[collective], sent, strict=True):
            # The pieces of an allreduce are cut one by one, at multiples of 16 elements.
            exact = 0.02 if collective == "allreduce" else 0
            said = crossing(collective, algo, node_of, rank)
            assert share == pytest.approx(said, abs=exact), (rank, algo)


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_uneven_parts_and_every_root(layout):
    node_of = LAYOUTS[layout]
    p = len(node_of)
    rows = [(5 * rank) % 4 for rank in range(p)]  # some have none

    def body(comm):
        mine = np.full((rows[comm.rank], 3), comm.rank, np.int32)
        everything = np.repeat(np.arange(p, dtype=np.int32), rows)[:, None] + np.zeros(3, np.int32)
        for root in range(p):
            found = comm.gather(mine, root, rows=rows)
            if comm.rank == root:
                np.testing.assert_array_equal(found, everything)
            got = comm.scatter(
                np.empty_like(mine), everything if comm.rank == root else None, root, rows=rows
            )
            np.testing.assert_array_equal(got, mine)
            x = np.full(1000, comm.rank, np.int64)
            assert (comm.broadcast(x, root) == root).all()
            x[:] = comm.rank
            comm.reduce(x, root=root)
            assert comm.rank != root or (x == p * (p - 1) // 2).all()
        np.testing.assert_array_equal(comm.allgather(mine, rows=rows), everything)
        np.testing.assert_array_equal(comm.reduce_scatter(everything, rows=rows), mine * p)

    run_threads(p, body, nodes=node_of)


def exchanged(rank, p, part, dtype):
    """What a rank puts into an alltoall, and what it gets."""
    source, target = np.divmod(np.arange(p * p), p)
    values = np.repeat((source * 100 + target).reshape(p, p), part, axis=1)
    mine = [values[s].reshape(p, part)[rank] for s in range(p)]
    return values[rank].astype(dtype), np.concatenate(mine).astype(dtype)


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("parts", [(100, 200), (900, 1000)])
def test_a_small_alltoall_goes_by_node(layout, parts):
    node_of = nodes(layout)
    p = len(node_of)

    def body(comm):
        for dtype, part in [("int8", 1), ("float32", 7), ("float64", 300), ("float32", 5000)]:
            given, expected = exchanged(comm.rank, p, part, dtype)
            np.testing.assert_array_equal(comm.alltoall(given), expected)

        totals = []
        for part in parts:
            given, _ = exchanged(comm.rank, p, part, "float32")
            comm.barrier()
            before = comm.traffic()["network_bytes"]
            comm.alltoall(given)
            totals.append(comm.traffic()["network_bytes"] - before)
        return totals[1] - totals[0]

    between = _C.build(_C.Collective.alltoall, "pairwise", max(node_of) + 1)
    small = 4 * p * parts[1] <= 16 << 10
    rails = 1 if small else min(node_of.count(node) for node in node_of)
    schedule = _C.hierarchical(_C.Collective.alltoall, node_of, between, rails)
    crossing = [0] * p
    for _, src, dst, lo, hi, _ in schedule.moves().tolist():
        crossing[src] += (hi - lo) * (node_of[src] != node_of[dst])
    more = 4 * (parts[1] - parts[0])
    found = run_threads(p, body, nodes=node_of, checksum=False)
    assert found == [more * chunks for chunks in crossing]


def test_what_goes_from_node_to_node_is_one_step_for_each_rail():
    """Which ends with a trailer of 8 bytes, as the header before it does."""

    def body(comm):
        given, _ = exchanged(comm.rank, 6, 10, "float32")
        comm.barrier()
        before = comm.traffic()["network_bytes"]
        comm.alltoall(given)
        return comm.traffic()["network_bytes"] - before

    checked, bare = (
        run_threads(6, body, nodes=[0, 0, 1, 1, 2, 2], checksum=on) for on in (True, False)
    )
    trailers = [(a - b) // 8 for a, b in zip(checked, bare, strict=True)]
    assert trailers == [4, 0] * 3  # one rail, whose rank sends to two other nodes


@pytest.mark.parametrize("with_sizes", [0, 1, 3])
def test_an_alltoall_with_and_without_sizes_is_noticed_at_once(with_sizes):
    def body(comm):
        given, _ = exchanged(comm.rank, 4, 5, "float32")
        sizes = [5] * 4 if comm.rank == with_sizes else None
        with pytest.raises(MismatchError, match="all ranks give split sizes or none does"):
            comm.alltoall(given, sizes, sizes, timeout=20)

    begun = time.monotonic()
    run_threads(4, body, nodes=nodes("2x2"))
    assert time.monotonic() - begun < 15


def test_without_a_local_stage_the_algorithm_runs_between_all_ranks():
    def body(comm):
        before = comm.traffic()["network_bytes"]
        comm.broadcast(np.zeros(1 << 20, np.uint8), 0, algo="scatter_allgather")
        return comm.traffic()["network_bytes"] - before

    by_node = sum(run_threads(8, body, nodes=nodes("2x4")))
    flat = sum(run_threads(8, body, nodes=nodes("2x4"), local="none"))
    assert flat > 3 * by_node
