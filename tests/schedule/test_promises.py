"""Every algorithm keeps its collective's promise, for every world size."""

import pytest
from schedule_cases import (
    ALL,
    ALLREDUCES,
    IDS,
    SOME_SIZES,
    hierarchical,
    layouts,
    roots,
    sizes,
)

from allreduce.schedules import by_name, parse_collective


@pytest.mark.parametrize(("collective", "name"), ALL, ids=IDS)
def test_every_world_size_to_64_keeps_the_promise(collective, name):
    kind = parse_collective(collective)
    for p in range(1, 65):
        for root in roots(collective, p):
            schedule = by_name(name, p, collective=kind, root=root)
            assert schedule.check(kind, root) == "", f"p = {p}, root = {root}"


@pytest.mark.parametrize(
    ("collective", "name", "p"),
    [(collective, name, p) for collective, name in ALL for p in sizes(collective, SOME_SIZES)],
)
def test_large_world_sizes_keep_the_promise(collective, name, p):
    for root in roots(collective, p):
        schedule = by_name(name, p, collective=collective, root=root)
        assert schedule.check(parse_collective(collective), root) == ""


@pytest.mark.full
@pytest.mark.parametrize(("collective", "name"), ALL, ids=IDS)
def test_every_world_size_and_root_keeps_the_promise(collective, name):
    kind = parse_collective(collective)
    for p in sizes(collective, range(1, 257)):
        for root in range(p) if p <= 64 else roots(collective, p):
            assert by_name(name, p, collective=kind, root=root).check(kind, root) == ""


@pytest.mark.parametrize("inter", ALLREDUCES)
@pytest.mark.parametrize("local", ["rs_ag", "reduce_bcast"])
def test_every_hierarchy_is_an_allreduce(local, inter):
    for nodes, rails in layouts():
        schedule = hierarchical(nodes, inter, rails, local)
        assert schedule.check(parse_collective("allreduce")) == "", (nodes, rails)


@pytest.mark.parametrize(("collective", "name"), ALL, ids=IDS)
def test_one_rank_has_nothing_to_do(collective, name):
    assert by_name(name, 1, collective=collective).num_rounds == 0


def test_bucket_is_an_alias_of_ring():
    for collective in ("allreduce", "reduce_scatter", "allgather"):
        bucket = by_name("bucket", 7, collective=collective)
        assert bucket == by_name("ring", 7, collective=collective)


def test_reduce_bcast_is_one_rail():
    assert hierarchical([4, 4], "ring", 4, "reduce_bcast") == hierarchical([4, 4], "ring", 1)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("x", {"world_size": 4}, "allreduce has no algorithm 'x'; it has recursive_doubling"),
        ("ring", {"world_size": 0}, "world size must be 1 to 4096, not 0"),
        ("ring", {"world_size": 5000}, "world size must be 1 to 4096, not 5000"),
        ("ring", {}, "ring needs a world_size"),
        ("ring", {"world_size": 4, "collective": "x"}, "no collective 'x'"),
        (
            "binomial",
            {"world_size": 4, "collective": "broadcast", "root": 4},
            "root must be 0 to 3, not 4",
        ),
        ("hierarchical:ring", {"world_size": 4}, "needs node_sizes"),
        ("hierarchical", {"node_sizes": [2, 2]}, "should be hierarchical:INTER"),
        ("hierarchical:x:ring", {"node_sizes": [2, 2]}, "local must be rs_ag or reduce_bcast"),
        ("hierarchical:x", {"node_sizes": [2, 2]}, "no algorithm 'x'"),
        ("hierarchical:ring", {"node_sizes": [2, 2], "world_size": 5}, "hold 4 ranks, not 5"),
        ("hierarchical:ring", {"node_sizes": [2, 3], "rails": 3}, "rails must be 1 to 2"),
        ("hierarchical:ring", {"node_sizes": [2, 0]}, "a node needs at least one rank"),
        (
            "hierarchical:ring",
            {"node_sizes": [2, 2], "collective": "barrier"},
            "barrier has no form over nodes",
        ),
    ],
)
def test_impossible_requests_say_what_is_possible(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        by_name(name, **arguments)
