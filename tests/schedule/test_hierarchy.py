"""Collectives over nodes: stages as data, and as little between nodes as there can be."""

import random
from fractions import Fraction

import pytest
from schedule_cases import ALL, roots

from allreduce import _C
from allreduce.schedules import Schedule, algorithms, by_name, parse_collective, stages

COLLECTIVES = [name for name in _C.Collective.__members__ if stages(name)]
CASES = [(collective, name) for collective, name in ALL if collective in COLLECTIVES]
NODE_SIZES = ([1], [4], [1, 1, 1], [2, 2], [2, 3], [1, 3], [3, 1, 2], [4, 4], [2, 5, 1, 4], [3] * 6)
ROOTED = ("broadcast", "reduce", "gather", "scatter")


def node_lists() -> list[list[int]]:
    """The node of each rank: neighbours first, then the same nodes in disorder."""
    lists = []
    for sizes in NODE_SIZES:
        orderly = [node for node, size in enumerate(sizes) for _ in range(size)]
        shuffled = random.Random(len(lists)).sample(orderly, len(orderly))
        number: dict[int, int] = {}
        lists += [orderly, [number.setdefault(node, len(number)) for node in shuffled]]
    return lists


def make(collective: str, inter: str, node_of: list[int], rails: int, root: int) -> Schedule:
    kind = parse_collective(collective)
    between = _C.build(kind, inter, max(node_of) + 1, node_of[root])
    return _C.hierarchical(kind, node_of, between, rails, root)


def smallest(node_of: list[int]) -> int:
    return min(node_of.count(node) for node in node_of)


def between_nodes(schedule: Schedule, node_of: list[int]) -> list[Fraction]:
    """What each node sends to others, in buffers."""
    sent = [Fraction(0)] * (max(node_of) + 1)
    for _, src, dst, lo, hi, _ in schedule.moves().tolist():
        if node_of[src] != node_of[dst]:
            sent[node_of[src]] += Fraction(hi - lo, schedule.num_chunks)
    return sent


def test_what_has_stages():
    assert set(COLLECTIVES) == {*ROOTED, "allreduce", "reduce_scatter", "allgather", "alltoall"}
    assert [(scope, what.name) for scope, what in stages("broadcast")] == [
        ("node", "scatter"),
        ("rail", "broadcast"),
        ("node", "allgather"),
    ]


@pytest.mark.parametrize(("collective", "inter"), CASES)
def test_every_layout_keeps_the_promise(collective, inter):
    kind = parse_collective(collective)
    for node_of in node_lists():
        for rails in range(1, smallest(node_of) + 1):
            for root in range(len(node_of)) if collective in ROOTED else [0]:
                schedule = make(collective, inter, node_of, rails, root)
                assert schedule.check(kind, root) == "", (node_of, rails, root)


def least(collective: str, node_of: list[int], root: int) -> list[Fraction]:
    """What each node has to send, in buffers, where the root's node sends what it must itself."""
    nodes = max(node_of) + 1
    share = [Fraction(node_of.count(node), len(node_of)) for node in range(nodes)]
    home = [node == node_of[root] for node in range(nodes)]
    return {
        "reduce_scatter": lambda: [1 - share[node] for node in range(nodes)],
        "allgather": lambda: [share[node] * (nodes - 1) for node in range(nodes)],
        "broadcast": lambda: [Fraction(nodes - 1 if here else 0) for here in home],
        "reduce": lambda: [Fraction(0 if here else 1) for here in home],
        "gather": lambda: [Fraction(0) if here else share[n] for n, here in enumerate(home)],
        "scatter": lambda: [1 - share[n] if here else Fraction(0) for n, here in enumerate(home)],
        # A buffer of all pairs' chunks.
        "alltoall": lambda: [part * (1 - part) for part in share],
    }[collective]()


@pytest.mark.parametrize(
    ("collective", "inter"),
    [
        ("reduce_scatter", "direct"),
        ("allgather", "direct"),
        ("broadcast", "binomial"),
        ("reduce", "binomial"),
        ("gather", "direct"),
        ("scatter", "direct"),
        ("alltoall", "pairwise"),
    ],
)
def test_nodes_send_what_they_must_and_no_more(collective, inter):
    for node_of in node_lists():
        if collective == "broadcast" and max(node_of) > 1:
            continue  # along the tree other nodes help the root's
        for rails in range(1, smallest(node_of) + 1):
            for root in roots(collective, len(node_of)):
                sent = between_nodes(make(collective, inter, node_of, rails, root), node_of)
                assert sent == least(collective, node_of, root), (node_of, rails, root)


@pytest.mark.parametrize("collective", ["broadcast", "reduce"])
def test_each_other_node_is_reached_once(collective):
    for node_of in node_lists():
        for root in range(len(node_of)):
            sent = between_nodes(make(collective, "binomial", node_of, 1, root), node_of)
            assert sum(sent) == max(node_of)


def test_an_alltoall_crosses_in_one_message_for_each_pair_of_nodes_and_rail():
    for node_of in node_lists():
        nodes = max(node_of) + 1
        for rails in range(1, smallest(node_of) + 1):
            schedule = make("alltoall", "pairwise", node_of, rails, 0)
            pairs = {
                (time, src, dst)
                for time, src, dst, *_ in schedule.moves().tolist()
                if node_of[src] != node_of[dst]
            }
            assert len(pairs) == rails * nodes * (nodes - 1), (node_of, rails)


@pytest.mark.parametrize("inter", ["ring", "halving_doubling", "circulant", "direct"])
def test_an_allreduce_sends_the_least(inter):
    for nodes in (2, 4, 8):
        node_of = [node for node in range(nodes) for _ in range(3)]
        for rails in (1, 2, 3):
            sent = between_nodes(make("allreduce", inter, node_of, rails, 0), node_of)
            assert sent == [Fraction(2 * (nodes - 1), nodes)] * nodes


def test_nodes_of_one_rank_are_a_flat_group():
    for collective, inter in CASES:
        root = 3 if collective in ROOTED else 0
        flat = by_name(inter, 7, collective=collective, root=root)
        assert make(collective, inter, list(range(7)), 1, root) == flat, (collective, inter)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("barrier", [0, 1], 2, 1), "barrier has no such form"),
        (("allreduce", [0, 2], 3, 1), "a node needs at least one rank"),
        (("allreduce", [0, -1], 2, 1), "numbered from 0"),
        (("allreduce", [0, 0, 1], 2, 2), "rails must be 1 to 1, the size of the smallest node"),
        (("allreduce", [0, 0, 1], 3, 1), "is for 3 of them, not for 2"),
        (("allreduce", [], 1, 1), "at least one node"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message):
    collective, node_of, nodes, rails = arguments
    kind = parse_collective(collective)
    between = _C.build(kind, algorithms(collective)[0], nodes)
    with pytest.raises(ValueError, match=message):
        _C.hierarchical(kind, node_of, between, rails)


def test_a_root_that_does_not_exist_is_refused():
    between = _C.build(_C.Collective.broadcast, "binomial", 2)
    with pytest.raises(ValueError, match="root must be 0 to 1, not 2"):
        _C.hierarchical(_C.Collective.broadcast, [0, 1], between, 1, 2)
