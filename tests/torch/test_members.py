"""The handles by which the members of a process group know each other."""

import pytest

from allreduce.errors import UsageError
from allreduce.torch.backend.members import name_group, new_handle, nodes_of, order_of


def handles(count: int, nodes: list[str] | None = None) -> list[str]:
    return [new_handle(rank, count, nodes) for rank in range(count)]


def test_no_two_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALLREDUCE_NODES", raising=False)
    made = handles(3) + handles(3)
    assert len(set(made)) == 6
    assert nodes_of(made) is None


@pytest.mark.parametrize("text", ["2", "0,0,1", "a:x,a:x,b:x"])
def test_simulated_nodes_are_named(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("ALLREDUCE_NODES", text)
    nodes = nodes_of(handles(3))
    assert nodes is not None
    assert nodes[0] == nodes[1] != nodes[2]
    assert nodes_of(handles(2, ["5", "7"])) == ["5", "7"]  # a subgroup


def test_a_list_is_in_rank_order_and_a_set_in_one_order() -> None:
    made = handles(4)
    assert order_of(made[1], made) == made
    assert order_of(made[1], set(made)) == order_of(made[2], set(made)) == sorted(made)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (lambda mine, other: [other], "not among the handles"),
        (lambda mine, other: [mine, other, other], "comes twice"),
        (lambda mine, other: [mine, "gloo:1"], "'gloo:1' is no handle of hier"),
    ],
)
def test_what_cannot_be_a_group_is_refused(given, says: str) -> None:
    mine, other = handles(2)
    with pytest.raises(UsageError, match=says):
        order_of(mine, given(mine, other))


def test_a_group_has_a_name_that_no_other_has() -> None:
    a, b = handles(2)
    names = [name_group(1, [a, b]), name_group(2, [a, b]), name_group(1, [b, a])]
    assert len(set(names)) == 3
