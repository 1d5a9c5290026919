"""eta of a run: the paper's table, and the short job's."""

from __future__ import annotations

import pytest

from trainer.config.options import Config
from trainer.training.learning_rate import Schedule


def of_the_paper(**options) -> Schedule:
    """kn = 8192 and 156 iterations an epoch, as ImageNet has them."""
    paper = {"epochs": 90, "warmup_epochs": 5.0, "milestones": (30.0, 60.0, 80.0)}
    config = Config(**{"data": "fashion", "batch": 32, "workers": 256, **paper, **options})
    return Schedule.from_config(config, 156)


@pytest.mark.parametrize(
    ("epoch", "eta"),
    [(0, 0.1), (2.5, 1.65), (5, 3.2), (29, 3.2), (30, 0.32), (60, 0.032), (80, 0.0032)],
)
def test_eight_k_minibatch_follows_the_paper(epoch: float, eta: float) -> None:
    assert of_the_paper()(round(epoch * 156)) == pytest.approx(eta, rel=1e-12)


def test_warmup_moves_every_iteration_by_the_same_amount() -> None:
    eta = of_the_paper()
    steps = [eta(i + 1) - eta(i) for i in range(780)]
    assert steps == pytest.approx([3.1 / 780] * 780, rel=1e-9)


def test_the_main_job_climbs_from_one_workers_rate_and_ends_at_a_tenth() -> None:
    eta = Schedule.from_config(Config(), 12)
    assert eta(0) == pytest.approx(0.0125)
    assert eta(12) == eta(39) == pytest.approx(0.05)
    assert eta(40) == eta(59) == pytest.approx(0.005)


@pytest.mark.parametrize("options", [{"warmup": "none"}, {"warmup_epochs": 0.0}])
def test_no_warmup_starts_at_the_target(options) -> None:
    assert of_the_paper(**options)(0) == pytest.approx(3.2)


def test_constant_warmup_waits_and_jumps() -> None:
    eta = of_the_paper(warmup="constant")
    assert [eta(i) for i in (0, 779, 780, 30 * 156)] == pytest.approx([0.1, 0.1, 3.2, 0.32])


@pytest.mark.parametrize(
    ("scaling", "eta"), [("linear", 3.2), ("sqrt", 0.1 * 32**0.5), ("fixed", 0.1)]
)
def test_the_rate_follows_the_minibatch_by_the_rule(scaling: str, eta: float) -> None:
    assert of_the_paper(scaling=scaling)(5 * 156) == pytest.approx(eta, rel=1e-12)


def test_a_fixed_rate_has_nothing_to_climb_to() -> None:
    eta = of_the_paper(scaling="fixed")
    assert {eta(i) for i in range(30 * 156)} == {0.1}


@pytest.mark.parametrize(("start", "first"), [(0.0, 0.0125), (0.02, 0.02), (0.1, 0.05)])
def test_warmup_starts_where_it_is_told_but_not_above_the_target(start, first) -> None:
    assert Schedule.from_config(Config(warmup_start=start), 12)(0) == pytest.approx(first)


def test_a_cosine_falls_from_the_end_of_warmup_to_the_end_of_the_run() -> None:
    eta = of_the_paper(schedule="cosine")
    end, middle = 90 * 156, (5 * 156 + 90 * 156) // 2
    assert eta(0) == pytest.approx(0.1)
    assert [eta(780), eta(middle), eta(end)] == pytest.approx([3.2, 1.6, 0.0])
    assert eta(30 * 156) > 0.32  # milestones are of the other schedule
    rates = [eta(i) for i in range(780, end, 100)]
    assert rates == sorted(rates, reverse=True)


def test_milestones_are_epochs_of_the_run() -> None:
    eta = Schedule.from_config(Config(milestones=(1.5, 4)), 12)
    assert [eta(i) for i in (17, 18, 47, 48)] == pytest.approx([0.05, 0.005, 0.005, 0.0005])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "lr 0.0125 to 0.05 over 12 iterations, / 10 at iteration 40"),
        ({"warmup": "none"}, "lr 0.05, / 10 at iteration 40"),
        (
            {"warmup": "constant", "milestones": (2.0, 4.0)},
            "lr 0.0125 for 12 iterations, then 0.05, / 10 at iteration 24, 48",
        ),
        (
            {"schedule": "cosine"},
            "lr 0.0125 to 0.05 over 12 iterations, falling as a cosine to 0 at iteration 60",
        ),
    ],
)
def test_the_schedule_says_itself_in_words(options, words: str) -> None:
    assert str(Schedule.from_config(Config(**options), 12)) == words
