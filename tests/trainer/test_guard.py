"""All workers judge an iteration alike, whichever of them saw the bad loss or the signal."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from worlds import run_threads

from trainer.config.options import Config
from trainer.launch.stop_signals import StopRequest
from trainer.training.loss_guard import BadLoss, Guard

WORLD = 3


def guards(body, requests=None, **options) -> list:
    config = Config(**options)

    def rank_main(comm):
        buffers = [torch.zeros(2), torch.zeros(1, dtype=torch.int64)]
        request = requests[comm.rank] if requests else StopRequest()
        return body(Guard(config, comm, buffers, 10, request), comm.rank, buffers)

    return run_threads(WORLD, rank_main)


def test_sound_losses_are_sound_for_all() -> None:
    def body(guard, rank, buffers):
        guard.begin()
        guard.see(2.3)
        return guard.sound(0)

    assert guards(body) == [True] * WORLD


@pytest.mark.parametrize(
    ("loss", "words"),
    [(math.nan, "is nan in iteration 7"), (math.inf, "is inf"), (99.0, "is 99, above the limit")],
)
def test_a_bad_loss_stops_all_and_names_the_first_rank_that_had_it(loss: float, words: str) -> None:
    def body(guard, rank, buffers):
        guard.begin()
        for mine in (2.3, loss if rank else 2.3, 2.3):
            guard.see(mine)
        with pytest.raises(BadLoss, match="the loss of rank 1 " + words):
            guard.sound(7)
        return True

    assert guards(body) == [True] * WORLD


def test_skipping_is_alike_counted_and_keeps_the_statistics() -> None:
    def body(guard, rank, buffers):
        verdicts = []
        for iteration in range(3):
            guard.begin()
            buffers[0] += 1
            guard.see(math.nan if (rank, iteration) == (2, 1) else 2.3)
            verdicts.append(guard.sound(iteration))
        return verdicts, guard.skipped, buffers[0].tolist()

    assert guards(body, on_bad_loss="skip") == [([True, False, True], 1, [2.0, 2.0])] * WORLD


def test_ten_skipped_in_a_row_stop() -> None:
    def train_on_nothing(guard) -> None:
        for iteration in range(20):
            guard.begin()
            guard.see(math.nan)
            guard.sound(iteration)

    def body(guard, rank, buffers):
        with pytest.raises(BadLoss, match="the 10th in a row"):
            train_on_nothing(guard)
        return guard.skipped

    assert guards(body, on_bad_loss="skip") == [10] * WORLD


def test_max_loss_says_what_has_exploded() -> None:
    def body(guard, rank, buffers):
        guard.begin()
        guard.see(2.3)
        with pytest.raises(BadLoss, match="above the limit of 2"):
            guard.sound(0)

    guards(body, max_loss=2.0)


def test_a_signal_to_one_worker_stops_all_at_the_same_iteration() -> None:
    requests = [StopRequest() for _ in range(WORLD)]

    def body(guard, rank, buffers):
        stopped = []
        for iteration in range(3):
            if (rank, iteration) == (1, 1):
                requests[1].number = 15
            guard.begin()
            guard.see(2.3)
            guard.sound(iteration)
            stopped.append(guard.stopping)
        return stopped

    assert guards(body, requests) == [[False, True, True]] * WORLD
    assert np.all([request.number == 0 for request in (requests[0], requests[2])])
