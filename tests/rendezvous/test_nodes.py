"""Node layouts from identities, numbers and lists."""

import pytest

from allreduce.rendezvous.node_layout import NodeIdentity, layout, my_identity, nodes_option


def on(*hosts: str) -> list[NodeIdentity]:
    return [NodeIdentity(boot="b" + host, host=host, network="net") for host in hosts]


def test_ranks_of_one_host_share_a_node() -> None:
    assert layout(on("x", "x", "y", "x", "z", "y"), None) == [0, 0, 1, 0, 2, 1]


def test_a_network_namespace_is_a_node_of_its_own() -> None:
    one, other = (NodeIdentity(boot="b", host="h", network=net) for net in ("net:1", "net:2"))
    assert layout([one, other, one], None) == [0, 1, 0]


def test_this_process_has_one_identity() -> None:
    assert my_identity() == my_identity()
    assert my_identity().boot


@pytest.mark.parametrize(
    ("world_size", "nodes", "expected"),
    [
        (4, 1, [0, 0, 0, 0]),
        (4, 2, [0, 0, 1, 1]),
        (4, 4, [0, 1, 2, 3]),
        (5, 2, [0, 0, 0, 1, 1]),
        (8, 3, [0, 0, 0, 1, 1, 1, 2, 2]),
    ],
)
def test_a_number_splits_contiguous_ranks(world_size: int, nodes: int, expected: list[int]) -> None:
    assert layout(on(*"x" * world_size), nodes) == expected


def test_a_list_gives_the_node_of_each_rank_numbered_by_first_appearance() -> None:
    assert layout(on(*"xxxx"), ["b", "a", "b", "c"]) == [0, 1, 0, 2]


@pytest.mark.parametrize("nodes", [0, -1, 5])
def test_a_number_that_cannot_be_is_refused(nodes: int) -> None:
    with pytest.raises(ValueError, match=rf"nodes={nodes}: 4 ranks"):
        layout(on(*"xxxx"), nodes)


def test_a_list_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="3 entries for 4 ranks"):
        layout(on(*"xxxx"), ["0", "0", "1"])


def test_ranks_of_two_hosts_cannot_be_put_on_one_node() -> None:
    with pytest.raises(ValueError, match="ranks 1 and 2 are put on one node"):
        layout(on("x", "x", "y", "y"), ["a", "b", "b", "c"])
    with pytest.raises(ValueError, match="cannot share memory"):
        layout(on("x", "y"), 1)


@pytest.mark.parametrize(
    ("nodes", "environ", "expected"),
    [
        (None, {}, None),
        (3, {}, 3),
        ([0, 0, 1], {}, ["0", "0", "1"]),
        (("a", "b"), {}, ["a", "b"]),
        (None, {"ALLREDUCE_NODES": "2"}, 2),
        (None, {"ALLREDUCE_NODES": " 0, 0,1 "}, ["0", "0", "1"]),
        (3, {"ALLREDUCE_NODES": "2"}, 3),
        (None, {"ALLREDUCE_NODES": ""}, None),
    ],
)
def test_the_argument_goes_before_the_variable(nodes, environ, expected) -> None:
    assert nodes_option(nodes, environ) == expected


@pytest.mark.parametrize(
    ("nodes", "environ", "says"),
    [
        (None, {"ALLREDUCE_NODES": "two"}, "ALLREDUCE_NODES='two'"),
        ("2", {}, "nodes='2'"),
        (True, {}, "nodes=True"),
        (1.5, {}, "nodes=1.5"),
    ],
)
def test_a_bad_value_is_named(nodes, environ, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        nodes_option(nodes, environ)
