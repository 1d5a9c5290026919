"""Schedules of users' own: run by name or as they are, over any layout, after the check."""

import time

import numpy as np
import pytest
from group_cases import nodes, size
from worlds import run_threads

from allreduce import _C, schedules
from allreduce.errors import MismatchError, UsageError
from allreduce.schedules import user_schedules

LAYOUTS = ("1x4", "2x2", "4x1", "3+1+2", "interleaved")
COUNTS = (0, 1, 1000, 100_003)


@pytest.fixture(autouse=True)
def none_registered(monkeypatch):
    monkeypatch.setattr(user_schedules, "_registered", {})


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
    with pytest.raises(ValueError, match="allreduce has no root"):
        schedules.register("mine", ring, root=1)
    exchange = schedules.by_name("pairwise", 2, collective="alltoall")
    with pytest.raises(ValueError, match="alltoall takes schedules of all ranks alone"):
        schedules.register("mine", exchange, "alltoall", scope="rail")


def test_a_run_in_flight_keeps_the_schedule_that_its_header_names():
    # Pieces ask for programs one by one: those of one run must all be of one schedule.
    count = 16 << 20

    def body(comm):
        rail = [schedules.by_name(name, 2) for name in ("ring", "binomial")]
        comm._group.add_schedule("mine", _C.Collective.allreduce, rail[0])
        x = np.ones(count, np.float32)
        work = comm.allreduce(x, algo="mine", async_op=True)
        time.sleep(0.02 * (comm.rank % 2))
        comm._group.add_schedule("mine", _C.Collective.allreduce, rail[1])
        work.wait()
        assert (x == 4).all()
        comm.allreduce(x, algo="mine")
        assert (x == 16).all()

    run_threads(4, body, nodes=[0, 0, 1, 1])


def test_a_name_has_schedules_for_several_roots_and_groups():
    for p in (2, 4):
        for root in range(p):
            made = schedules.by_name("binomial", p, collective="broadcast", root=root)
            schedules.register("mine", made, "broadcast", root=root)

    def body(comm):
        half = comm.split(comm.rank % 2)
        for root in range(4):
            x = np.full(1000, comm.rank)
            assert (comm.broadcast(x, root, algo="mine") == root).all()
            y = np.full(1000, half.rank)
            assert (half.broadcast(y, root % 2, algo="mine") == root % 2).all()
        half.close()

    run_threads(4, body, nodes=[0, 1, 0, 1])


def broadcast_and_meet(comm):
    comm.broadcast(np.ones(10), 0, algo="mine")
    comm.barrier()  # the root has sent, and hears of a mismatch later


def test_ranks_that_differ_for_one_root_are_told_whatever_the_others_are():
    tree = [schedules.by_name("binomial", 2, collective="broadcast", root=r) for r in (0, 1)]
    again = tree[0].then(schedules.from_moves(2, 1, [(0, 0, 1, 0, 1, 0)]))

    def body(comm):
        kind = _C.Collective.broadcast
        comm._group.add_schedule("mine", kind, again if comm.rank else tree[0], 0)
        comm._group.add_schedule("mine", kind, tree[1], 1)
        with pytest.raises(MismatchError):
            broadcast_and_meet(comm)

    run_threads(2, body, nodes=[0, 1])


def test_another_scope_takes_the_place_of_the_first():
    def body(comm):
        sent = []
        for mine, scope in ((two_way_ring(4), "world"), (two_way_ring(2), "rail")):
            comm.barrier()
            if comm.rank == 0:
                schedules.register("mine", mine, scope=scope)
            comm.barrier()
            before = comm.traffic()["network_bytes"]
            assert (comm.allreduce(np.ones(1 << 18), algo="mine") == 4).all()
            sent.append(comm.traffic()["network_bytes"] - before)
        return sent

    world, rail = zip(*run_threads(4, body, nodes=[0, 0, 1, 1]), strict=True)
    assert sum(rail) < 0.8 * sum(world)


def test_between_nodes_the_root_is_a_node():
    def body(comm):
        for root in range(4):
            mine = schedules.by_name("binomial", 2, collective="broadcast", root=root // 2)
            x = np.full(100_000, comm.rank)
            assert (comm.broadcast(x, root, algo=mine) == root).all()

    run_threads(4, body, nodes=[0, 0, 1, 1])


def test_on_one_node_nothing_is_between_nodes():
    schedules.register("mine", two_way_ring(2), scope="rail")

    def body(comm):
        assert (comm.allreduce(np.ones(1000), algo="mine") == 3).all()

    run_threads(3, body)


def test_a_world_of_one_rank_runs_what_it_has():
    alone = schedules.from_moves(1, 1, [])
    schedules.register("alone", alone)

    def body(comm):
        assert comm.allreduce(np.ones(3), algo="alone").tolist() == [1] * 3
        assert comm.allreduce(np.ones(3), algo=alone, async_op=True).wait().tolist() == [1] * 3

    run_threads(1, body)


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
            with pytest.raises(UsageError, match=r"(registered|is) for 3 ranks"):
                comm.allreduce(np.ones(4), algo=algo)
        with pytest.raises(UsageError, match="this call needs it for 4 ranks and root 1"):
            comm.broadcast(np.ones(4), 1, algo="rooted")
        with pytest.raises(UsageError, match="root 7 is outside"):
            comm.broadcast(np.ones(4), 7, algo="rooted")
        with pytest.raises(UsageError, match="is for 2 ranks"):
            comm.alltoall(np.ones(4), algo=detour)
        assert comm.allreduce(np.ones(4)).tolist() == [4] * 4

    run_threads(4, body)

    def pair(comm):
        with pytest.raises(UsageError, match=r"0=>1\[2\] is not a chunk's way"):
            comm.alltoall(np.ones(4), algo=detour)

    run_threads(2, pair)
