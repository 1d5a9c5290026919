"""LARS against its formula, written out in numpy, in f64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from allreduce.optim import LARS, SGD

M, DECAY, TRUST, STEPS = 0.9, 1e-2, 0.02, 20


def eta(step: int) -> float:
    return 0.1 * (step + 1)


def gradient(w: np.ndarray, step: int) -> np.ndarray:
    return np.linspace(0.2, 1.5, w.size).reshape(w.shape) * (w - np.sin(step))


def by_formula(w: np.ndarray, *, adapted: bool) -> np.ndarray:
    u = np.zeros_like(w)
    for step in range(STEPS):
        g = gradient(w, step)
        ratio = TRUST * np.linalg.norm(w) / (np.linalg.norm(g) + DECAY * np.linalg.norm(w))
        g = (ratio if adapted else 1.0) * (g + DECAY * w)
        u = M * u + g
        w = w - eta(step) * (g + M * u)
    return w


def by_us(starts: list[np.ndarray], kind: type[SGD] = LARS, **options) -> list[np.ndarray]:
    params = [nn.Parameter(torch.tensor(w)) for w in starts]
    optimizer = kind(params, lr=1.0, momentum=M, weight_decay=DECAY, **options)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = eta(step)
        for param in params:
            param.grad = torch.tensor(gradient(param.detach().numpy(), step))
        optimizer.step()
    return [param.detach().numpy() for param in params]


def test_each_tensor_follows_the_formula_and_vectors_take_plain_steps(rng) -> None:
    layer, bias = rng.normal(size=(4, 3)), rng.normal(size=5)
    ours = by_us([layer, bias], trust=TRUST)
    np.testing.assert_allclose(ours[0], by_formula(layer, adapted=True), rtol=1e-12)
    np.testing.assert_allclose(ours[1], by_formula(bias, adapted=False), rtol=1e-12)


def test_steps_are_in_proportion_to_the_weights_whatever_the_gradient_s_scale() -> None:
    ends = []
    for scale in (1.0, 1000.0):
        param = nn.Parameter(torch.eye(3).double())
        optimizer = LARS([param], lr=1.0, momentum=0.0, weight_decay=0.0, trust=0.1)
        param.grad = scale * torch.ones(3, 3).double()
        optimizer.step()
        ends.append(param.detach().clone())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-14, atol=0)
    change = (ends[0] - torch.eye(3)).norm()
    assert change.item() == pytest.approx(0.1 * torch.eye(3).norm().item())


@pytest.mark.parametrize(("weights", "slope"), [(0.0, 1.0), (1.0, 0.0)])
def test_a_zero_norm_gives_a_plain_step(weights: float, slope: float) -> None:
    ends = []
    for kind in (LARS, SGD):
        param = nn.Parameter(torch.full((2, 2), weights))
        param.grad = torch.full((2, 2), slope)
        kind([param], lr=0.5, weight_decay=0.1).step()
        ends.append(param.detach())
    assert torch.equal(ends[0], ends[1])


def test_gradients_are_left_as_they_are() -> None:
    param = nn.Parameter(torch.ones(2, 2))
    param.grad = torch.ones(2, 2)
    LARS([param], lr=0.1).step()
    assert torch.equal(param.grad, torch.ones(2, 2))


def test_a_trust_coefficient_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="trust must be above 0, not 0"):
        LARS([nn.Parameter(torch.ones(2))], lr=0.1, trust=0.0)
