"""Learning-rate functions against the paper's own numbers."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest

from allreduce.optim import (
    constant_warmup,
    cosine_decay,
    gradual_warmup,
    linear_scaling,
    sqrt_scaling,
    step_decay,
)

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize(("kn", "eta"), [(128, 0.05), (256, 0.1), (8192, 3.2), (65536, 25.6)])
def test_linear_scaling_gives_the_rates_of_the_paper(kn: int, eta: float) -> None:
    assert linear_scaling(kn) == pytest.approx(eta, rel=1e-15)


@pytest.mark.parametrize(("kn", "eta"), [(64, 0.05), (256, 0.1), (8192, 0.1 * 32**0.5)])
def test_sqrt_scaling_gives_the_rates_of_table_2a(kn: int, eta: float) -> None:
    assert sqrt_scaling(kn) == pytest.approx(eta, rel=1e-15)


@pytest.mark.parametrize("scaling", [linear_scaling, sqrt_scaling])
def test_scaling_refuses_an_empty_minibatch(scaling) -> None:
    with pytest.raises(ValueError, match="positive, not 0 and 256"):
        scaling(0)


def test_gradual_warmup_adds_a_constant_amount_each_iteration() -> None:
    rates = [gradual_warmup(i, start=0.1, target=3.2, iterations=780) for i in range(1000)]
    steps = [b - a for a, b in itertools.pairwise(rates)]
    assert rates[0] == 0.1
    assert rates[780] == rates[-1] == 3.2
    assert steps[:780] == pytest.approx([3.1 / 780] * 780, rel=1e-9)
    assert max(b / a for a, b in itertools.pairwise(rates)) == pytest.approx(1.0397, 1e-4)


def test_constant_warmup_jumps_at_its_end() -> None:
    rates = [constant_warmup(i, start=0.1, target=3.2, iterations=5) for i in range(8)]
    assert rates == [0.1] * 5 + [3.2] * 3


@pytest.mark.parametrize("warmup", [gradual_warmup, constant_warmup])
def test_no_warmup_is_the_target_at_once(warmup) -> None:
    assert warmup(0, start=0.1, target=3.2, iterations=0) == 3.2


def test_step_decay_multiplies_at_each_milestone() -> None:
    factors = [step_decay(epoch, [30, 60, 80]) for epoch in (0, 29, 30, 59, 60, 80, 89)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.001, 0.001], rel=1e-12)


def test_cosine_decay_is_half_a_wave() -> None:
    factors = [cosine_decay(i, begin=10, end=50) for i in (0, 10, 20, 30, 40, 50, 60)]
    high, low = 0.5 + 0.5**1.5, 0.5 - 0.5**1.5
    assert factors == pytest.approx([1, 1, high, 0.5, low, 0, 0], abs=1e-15)


def test_cosine_decay_needs_iterations_to_fall_in() -> None:
    with pytest.raises(ValueError, match="not at 10 with a begin at 10"):
        cosine_decay(0, begin=10, end=10)


@pytest.mark.parametrize("rate", [gradual_warmup, constant_warmup])
def test_a_negative_iteration_is_refused(rate) -> None:
    with pytest.raises(ValueError, match="counted from 0, not -1"):
        rate(-1, start=0.1, target=1.0, iterations=3)


def test_schedules_are_usable_without_torch() -> None:
    code = (
        "import sys; from allreduce.optim import linear_scaling; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
