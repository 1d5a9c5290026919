"""Which state processes agree on that a death has left in different places."""

from __future__ import annotations

import pytest
import torch
from worlds import run_threads

from trainer.checkpoint.file import Facts
from trainer.checkpoint.memory import Memory, agree
from trainer.checkpoint.states import States, renamed


def memory(rank: int, offset: int, *, tested: bool = False, **more: object) -> Memory:
    """Of a process whose weights are its rank; its statistics are 1 in `own` and 0 before."""
    layer = torch.nn.Linear(1, 1)
    layer.weight.data.fill_(rank)
    facts = Facts(
        epoch=1, offset=offset, iteration=9, progress=1.5, workers=2, minibatch=8, config={},
        test={"epoch": 1.5} if tested else {},
    )  # fmt: skip
    states = [
        {name: {"0.x": torch.tensor(value)} for name in ("statistics", "random")}
        for value in (1.0, 0.0)
    ]
    return Memory(
        facts=facts, own=states[0], before=states[1],
        states=States(common={"layer": layer}, workers={}), **more,
    )  # fmt: skip


def agreed(*made) -> list[tuple]:
    """Of each process: the weight, the offset, the statistics and the random state."""

    def body(comm):
        memory = agree(comm, made[comm.rank](comm.rank))
        assert memory.states is None
        assert not memory.under_way
        layer = torch.nn.Linear(1, 1)
        States(common={"layer": layer}, workers={}).restore_own(memory.common, {})
        values = [float(memory.own[name]["0.x"]) for name in ("statistics", "random")]
        return (float(layer.weight.detach()), memory.facts.offset, *values)

    return run_threads(len(made), body)


def ahead(rank: int, **more: object) -> Memory:
    return memory(rank, 16, **more)


def begun(rank: int) -> Memory:
    return memory(rank, 8, under_way=True)


def test_a_begun_iteration_is_dropped_where_nobody_ended_it() -> None:
    assert agreed(begun, lambda rank: memory(rank, 8)) == [(0, 8, 0, 0), (0, 8, 1, 1)]


def test_who_is_behind_takes_the_update_and_keeps_the_statistics() -> None:
    assert agreed(begun, ahead, begun) == [(1, 16, 1, 1)] * 3


def test_who_is_behind_an_update_that_was_skipped_puts_the_statistics_back() -> None:
    assert agreed(begun, lambda rank: ahead(rank, updated=False)) == [(1, 16, 0, 1), (1, 16, 1, 1)]


def test_who_is_ahead_and_has_begun_the_next_drops_it() -> None:
    assert agreed(begun, lambda rank: ahead(rank, under_way=True)) == [(1, 16, 1, 1), (1, 16, 0, 0)]


def test_a_test_that_one_has_ended_is_not_repeated() -> None:
    results = agreed(lambda rank: memory(rank, 8), lambda rank: memory(rank, 8, tested=True))
    assert [weight for weight, *_ in results] == [1, 1]


def test_an_agreed_state_can_be_agreed_on_again() -> None:
    """A process that has died in the middle: some have the state of the farthest, others not."""

    def body(comm):
        first = agree(comm, ahead(1) if comm.rank else begun(0))
        second = agree(comm, begun(0) if comm.rank else first)
        return second.facts.offset, second.common == first.common

    assert run_threads(2, body) == [(16, True)] * 2


@pytest.mark.parametrize("step", [0, 3])
def test_states_are_named_by_their_workers(step: int) -> None:
    state = {"1.a.b": torch.zeros(1), "2.a.b": torch.ones(1)}
    assert list(renamed(state, step)) == [f"{1 + step}.a.b", f"{2 + step}.a.b"]
    assert renamed(renamed(state, step), -step) == state
