"""Schedules of users' own: run by name or as they are, over any layout, after the check."""

import numpy as np
import pytest
from group_cases import nodes, size
from worlds import run_threads

from allreduce import _C, schedules
from allreduce._own_schedules import _registered
from allreduce.errors import MismatchError, UsageError

LAYOUTS = ("1x4", "2x2", "4x1", "3+1+2", "interleaved")
COUNTS = (0, 1, 1000, 100_003)


@pytest.fixture(autouse=True)
def as_before():
    before = dict(_registered)
    yield
    _registered.clear()
    _registered.update(before)


def two_way_ring(p: int) -> schedules.Schedule:
    """Half of the chunks travel up the ring, half down it."""
    moves = []
    for t in range(2 * (p - 1)):
        for rank in range(p):
            up, down = (rank - t) % p, p + (rank + t) % p
            moves.append((t, rank, (rank + 1) % p, up, up + 1, int(t < p - 1)))
            moves.append((t, rank, (rank - 1) % p, down, down + 1, int(t < p - 1)))
    return schedules.from_moves(p, 2 * p, moves, collective="allreduce")


def layout_of(name: str) -> list[int]:
    return [0, 1, 2, 3] if name == "4x1" else nodes(name)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("by_name", [True, False])
def test_an_allreduce_runs_the_list_of_moves(layout, by_name):
    node_of = layout_of(layout)
    p = len(node_of)
    mine = two_way_ring(p)
    schedules.register("two_way_ring", mine)

    def body(comm):
        for count in COUNTS:
            x = np.arange(count, dtype=np.float64) + comm.rank
            out = comm.allreduce(x, algo="two_way_ring" if by_name else mine)
            assert out is x
            np.testing.assert_array_equal(x, np.arange(count) * p + p * (p - 1) / 2)
        works = [
            comm.allreduce(np.full(5000, i + comm.rank), algo=mine, async_op=True) for i in range(5)
        ]
        assert [int(w.wait()[0]) for w in works] == [p * i + p * (p - 1) // 2 for i in range(5)]
        return comm.traffic()["network_bytes"]

    sent = run_threads(p, body, nodes=node_of)
    # Not the shared-memory stage, nor only one rank of each node: every edge of the ring is used.
    crossing = [any(node_of[r] != node_of[(r + way) % p] for way in (1, -1)) for r in range(p)]
    assert [bytes_ > 0 for bytes_ in sent] == crossing


@pytest.mark.parametrize("layout", ["2x2", "3+1+2", "2x4"])
def test_between_nodes_it_takes_the_algorithms_place(layout):
    schedules.register("nodes_ring", two_way_ring(max(nodes(layout)) + 1), scope="rail")

    def body(comm):
        x = np.full(50_000, comm.rank, np.int64)
        comm.allreduce(x, algo="nodes_ring")
        return int(x[0]), int(x[-1])

    p = size(layout)
    assert run_threads(p, body, nodes=nodes(layout)) == [(p * (p - 1) // 2,) * 2] * p


@pytest.mark.parametrize(
    ("collective", "algo"),
    [
        ("reduce_scatter", "ring"),
        ("allgather", "direct"),
        ("broadcast", "binomial"),
        ("reduce", "binomial"),
        ("gather", "direct"),
        ("scatter", "binomial"),
        ("alltoall", "pairwise"),
    ],
)
@pytest.mark.parametrize("layout", ["1x4", "2x2"])
def test_every_collective_runs_one(collective, algo, layout):
    kind = schedules.parse_collective(collective)
    root = 1 if kind.rooted else 0
    made = schedules.by_name(algo, 4, collective=kind, root=root)
    mine = schedules.from_moves(4, made.num_chunks, made.moves())  # somebody else's list

    def body(comm):
        part = np.arange(100) + 1000 * comm.rank
        whole = np.arange(400) + comm.rank
        sums = np.arange(400) * 4 + 6
        own = slice(comm.rank * 100, comm.rank * 100 + 100)
        here = comm.rank == root
        parts = np.concatenate([np.arange(100) + 1000 * r for r in range(4)])
        found, expected = {
            "reduce_scatter": lambda: (comm.reduce_scatter(whole, algo=mine), sums[own]),
            "allgather": lambda: (comm.allgather(part, algo=mine), parts),
            "broadcast": lambda: (comm.broadcast(whole, root, algo=mine), np.arange(400) + root),
            "reduce": lambda: (
                comm.reduce(whole, root=root, algo=mine),
                sums if here else whole,
            ),
            "gather": lambda: (comm.gather(part, root, algo=mine), parts if here else None),
            "scatter": lambda: (
                comm.scatter(np.empty(100, int), parts if here else None, root, algo=mine),
                part,
            ),
            "alltoall": lambda: (
                comm.alltoall(whole, algo=mine),
                np.concatenate([np.arange(400)[own] + r for r in range(4)]),
            ),
        }[collective]()
        if expected is not None:
            np.testing.assert_array_equal(found, expected)

    run_threads(4, body, nodes=nodes(layout))


def test_ranks_that_disagree_about_a_name_are_told():
    lists = [two_way_ring(2), schedules.by_name("ring", 2)]

    def body(comm):
        comm._group.add_schedule("mine", _C.Collective.allreduce, lists[comm.rank])
        with pytest.raises(MismatchError):
            comm.allreduce(np.ones(100), algo="mine")

    for layout in ([0, 0], [0, 1]):
        run_threads(2, body, nodes=layout)


def test_a_name_can_be_registered_again():
    def body(comm):
        for mine in (two_way_ring(2), schedules.by_name("ring", 2)):
            comm.barrier()
            if comm.rank == 0:
                schedules.register("mine", mine)
            comm.barrier()
            assert comm.allreduce(np.ones(100), algo="mine").tolist() == [2] * 100

    run_threads(2, body, nodes=[0, 1])


def test_what_is_registered_must_be_right():
    ring = two_way_ring(3)
    moves = ring.moves().tolist()
    broken = schedules.from_moves(3, 6, moves[:-1])
    with pytest.raises(ValueError, match=r"'mine' is no allreduce: at the end, rank \d chunk"):
        schedules.register("mine", broken)
    twice = schedules.from_moves(3, 6, [*moves, (4, 0, 1, 0, 1, 1)])
    with pytest.raises(ValueError, match=r"'mine' is no allreduce: round 4, move 0\+>1\[0\]"):
        schedules.register("mine", twice)
    for name in ("ring", "bucket", "auto", "", "hierarchical:x"):
        with pytest.raises(ValueError, match="is taken"):
            schedules.register(name, ring)
    with pytest.raises(ValueError, match="longer than 23 bytes"):
        schedules.register("x" * 24, ring)
    with pytest.raises(ValueError, match='scope must be "world" or "rail"'):
        schedules.register("mine", ring, scope="node")


def test_a_schedule_for_other_groups_is_refused_in_words():
    schedules.register("three", two_way_ring(3))
    schedules.register(
        "rooted", schedules.by_name("binomial", 4, collective="broadcast"), "broadcast"
    )
    detour = schedules.from_moves(
        2, 4, [(0, 0, 1, 1, 2, 0), (0, 1, 0, 2, 3, 0), (1, 0, 1, 2, 3, 0)]
    )

    def body(comm):
        for algo in ("three", two_way_ring(3)):
            with pytest.raises(UsageError, match=r"(has|is for) 3 ranks"):
                comm.allreduce(np.ones(4), algo=algo)
        with pytest.raises(UsageError, match="not registered for 4 ranks and root 1"):
            comm.broadcast(np.ones(4), 1, algo="rooted")
        with pytest.raises(UsageError, match="is for 2 ranks"):
            comm.alltoall(np.ones(4), algo=detour)
        assert comm.allreduce(np.ones(4)).tolist() == [4] * 4

    run_threads(4, body)

    def pair(comm):
        with pytest.raises(UsageError, match=r"0=>1\[2\] is not a chunk's way"):
            comm.alltoall(np.ones(4), algo=detour)

    run_threads(2, pair)
