"""eta of a run: the paper's table, and the short job's."""

from __future__ import annotations

import pytest

from trainer.options import Config
from trainer.schedule import Schedule


def of_the_paper() -> Schedule:
    """ImageNet with kn = 8192: 156 iterations an epoch."""
    eight_k = object.__new__(Config)  # a minibatch larger than any data set that is shipped
    fields = {"batch": 32, "workers": 256, "lr": 0.1, "warmup_epochs": 5.0, "epochs": 90}
    for name, value in {**fields, "milestones": (30.0, 60.0, 80.0)}.items():
        object.__setattr__(eight_k, name, value)
    return Schedule.from_config(eight_k, 156)


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


def test_no_warmup_starts_at_the_target() -> None:
    eta = Schedule.from_config(Config(warmup_epochs=0.0), 12)
    assert eta(0) == pytest.approx(0.05)


def test_milestones_are_epochs_of_the_run() -> None:
    eta = Schedule.from_config(Config(milestones=(1.5, 4)), 12)
    assert [eta(i) for i in (17, 18, 47, 48)] == pytest.approx([0.05, 0.005, 0.005, 0.0005])


def test_the_schedule_says_itself_in_words() -> None:
    words = str(Schedule.from_config(Config(), 12))
    assert words == "eta 0.0125 to 0.05 over 12 iterations, / 10 at iteration 40"
