"""The model of a training step, by cases that can be worked out by hand."""

import numpy as np
import pytest

from allreduce.tuning.training_step import Message, backward_seconds, slowest


def test_what_is_ready_early_is_hidden() -> None:
    assert backward_seconds(10.0, [Message(2.0, 1.0, 3.0), Message(6.0, 1.0, 2.0)]) == 10.0


def test_the_last_message_is_never_hidden() -> None:
    assert backward_seconds(10.0, [Message(10.0, 1.0, 3.0)]) == 14.0


def test_nothing_to_reduce_takes_the_computation_alone() -> None:
    assert backward_seconds(10.0, []) == 10.0


@pytest.mark.parametrize(("lanes", "expected"), [(1, 4.0), (2, 2.0), (4, 1.0)])
def test_messages_on_lanes_of_their_own_wait_together(lanes: int, expected: float) -> None:
    assert backward_seconds(0.0, [Message(0.0, 1.0, 0.0)] * 4, lanes) == expected


def test_bytes_pass_one_after_the_other_whatever_the_lanes() -> None:
    assert backward_seconds(0.0, [Message(0.0, 0.0, 1.0)] * 4, lanes=4) == 4.0


def test_a_message_starts_in_its_turn() -> None:
    late_first = [Message(5.0, 0.5, 0.0), Message(0.0, 3.0, 0.0)]
    assert backward_seconds(0.0, late_first, lanes=2) == 8.0


@pytest.mark.parametrize("hosts", [1, 2, 32, 1000])
def test_the_slowest_host_is_that_of_many_draws(hosts: int) -> None:
    sigma = 0.1
    draws = np.random.default_rng(1).lognormal(-sigma * sigma / 2, sigma, (4000, hosts))
    assert slowest(hosts, sigma) == pytest.approx(draws.max(axis=1).mean(), rel=0.01)


def test_hosts_that_do_not_vary_have_no_slowest_one() -> None:
    assert slowest(1000, 0.0) == 1.0
