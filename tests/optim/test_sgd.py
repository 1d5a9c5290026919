"""SGD against the paper's equations (9) and (10), written out in numpy, in f64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from allreduce.optim import LARS, SGD, constant_warmup, gradual_warmup, split_weight_decay

pytestmark = pytest.mark.timeout(120)

M, DECAY, STEPS = 0.9, 1e-2, 40
SCHEDULES = {
    "fixed": lambda i: 0.05,
    "gradual": lambda i: gradual_warmup(i, start=0.01, target=0.32, iterations=20),
    "constant": lambda i: constant_warmup(i, start=0.01, target=0.32, iterations=20),
    "decay": lambda i: 0.2 * 0.1 ** (i // 15),
}


def gradients(w: np.ndarray, step: int) -> np.ndarray:
    """Gradient of a quadratic with a moving target: depends on w, so that errors would spread."""
    curvature = np.linspace(0.2, 1.5, w.size)
    return curvature * (w - np.sin(step + np.arange(w.size)))


def start() -> np.ndarray:
    return np.random.default_rng(7).normal(size=12)


def run(schedule, **options) -> np.ndarray:
    """Final weights of our optimizer; two tensors, so that lists of them are exercised."""
    w = torch.tensor(start())
    params = [nn.Parameter(w[:5].clone()), nn.Parameter(w[5:].clone())]
    optimizer = SGD(params, lr=1.0, momentum=M, weight_decay=DECAY, **options)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = schedule(step)
        whole = torch.cat([p.detach() for p in params]).numpy()
        g = torch.tensor(gradients(whole, step))
        params[0].grad, params[1].grad = g[:5].clone(), g[5:].clone()
        optimizer.step()
    return torch.cat([p.detach() for p in params]).numpy()


def reference(schedule, *, nesterov: bool) -> np.ndarray:
    """Equation (9)."""
    w, u = start(), np.zeros(12)
    for step in range(STEPS):
        g = gradients(w, step) + DECAY * w
        u = M * u + g
        w = w - schedule(step) * (g + M * u if nesterov else u)
    return w


def absorbed_without_correction(schedule, *, nesterov: bool) -> np.ndarray:
    """Equation (10) as it stands."""
    w, v = start(), np.zeros(12)
    for step in range(STEPS):
        eta = schedule(step)
        g = gradients(w, step) + DECAY * w
        v = M * v + eta * g
        w = w - (eta * g + M * v if nesterov else v)
    return w


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("form", ["reference", "absorbed"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_both_forms_are_equation_9_under_any_schedule(name: str, form: str, nesterov: bool) -> None:
    found = run(SCHEDULES[name], form=form, nesterov=nesterov)
    np.testing.assert_allclose(found, reference(SCHEDULES[name], nesterov=nesterov), rtol=1e-12)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("name", ["gradual", "constant", "decay"])
def test_uncorrected_form_is_equation_10_and_differs(name: str, nesterov: bool) -> None:
    found = run(SCHEDULES[name], form="absorbed", nesterov=nesterov, momentum_correction=False)
    expected = absorbed_without_correction(SCHEDULES[name], nesterov=nesterov)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    distance = np.abs(found - reference(SCHEDULES[name], nesterov=nesterov)).max()
    assert distance > 1e-3


def test_reference_form_matches_torch_sgd() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(30, 20), nn.Linear(30, 20)
    theirs.load_state_dict(ours.state_dict())
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "nesterov": True}
    optimizers = [
        SGD(ours.parameters(), **options),
        torch.optim.SGD(theirs.parameters(), **options),
    ]
    for step in range(10):
        x = torch.randn(8, 30, generator=torch.Generator().manual_seed(step))
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("form", ["reference", "absorbed"])
def test_a_parameter_that_rests_is_corrected_over_the_whole_gap(form: str) -> None:
    results = []
    for kind in (form, "reference"):
        w = nn.Parameter(torch.tensor(start()))
        optimizer = SGD([w], lr=0.1, form=kind)
        for eta, has_gradient in ((0.1, True), (0.2, False), (0.4, True), (0.05, True)):
            optimizer.param_groups[0]["lr"] = eta
            w.grad = 0.3 * w.detach() if has_gradient else None
            optimizer.step()
        results.append(w.detach().numpy())
    np.testing.assert_allclose(results[0], results[1], rtol=1e-12)


@pytest.mark.parametrize("form", ["reference", "absorbed"])
def test_state_dict_round_trip_continues_bit_for_bit(form: str) -> None:
    def steps(optimizer: SGD, w: nn.Parameter, numbers: range) -> None:
        for step in numbers:
            optimizer.param_groups[0]["lr"] = 0.01 * (step + 1)
            w.grad = torch.tensor(gradients(w.detach().numpy(), step))
            optimizer.step()

    straight = nn.Parameter(torch.tensor(start()))
    steps(SGD([straight], lr=1.0, form=form), straight, range(10))

    first = nn.Parameter(torch.tensor(start()))
    saved = SGD([first], lr=1.0, form=form)
    steps(saved, first, range(5))
    second = nn.Parameter(first.detach().clone())
    resumed = SGD([second], lr=9.0)
    resumed.load_state_dict(saved.state_dict())
    steps(resumed, second, range(5, 10))
    assert torch.equal(second, straight)


def test_sum_of_losses_over_kn_is_the_mean_gradient() -> None:
    """Remark 3: each worker divides its summed loss by kn, and gradients are summed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)).double()
    x, labels = torch.randn(24, 6).double(), torch.randint(0, 4, (24,))
    loss = nn.functional.cross_entropy
    whole = torch.autograd.grad(loss(model(x), labels, reduction="mean"), list(model.parameters()))
    total = [torch.zeros_like(p) for p in model.parameters()]
    per_worker_mean = [torch.zeros_like(p) for p in model.parameters()]
    for worker in range(4):
        part = slice(6 * worker, 6 * worker + 6)
        summed = loss(model(x[part]), labels[part], reduction="sum")
        for sums, divisor in ((total, 24), (per_worker_mean, 6)):
            grads = torch.autograd.grad(
                summed / divisor, list(model.parameters()), retain_graph=True
            )
            for into, g in zip(sums, grads, strict=True):
                into += g
    for found, wrong, expected in zip(total, per_worker_mean, whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(wrong, 4 * expected, rtol=1e-12, atol=1e-14)


def test_scaling_the_loss_is_not_scaling_the_rate() -> None:
    """Remark 1: with weight decay, c times the loss at eta differs from the loss at c eta."""

    def final(loss_scale: float, lr: float, decay: float) -> torch.Tensor:
        w = nn.Parameter(torch.tensor(start()))
        optimizer = SGD([w], lr=lr, momentum=M, weight_decay=decay)
        for step in range(STEPS):
            w.grad = loss_scale * torch.tensor(np.cos(step + np.arange(12.0)))
            optimizer.step()
        return w.detach()

    torch.testing.assert_close(final(4, 0.01, 0), final(1, 0.04, 0), rtol=1e-12, atol=1e-12)
    difference = (final(4, 0.01, DECAY) - final(1, 0.04, DECAY)).abs().max()
    assert difference > 1e-2


@pytest.mark.parametrize("kind", [SGD, LARS])
def test_nothing_decays_unasked(kind: type[SGD]) -> None:
    w = nn.Parameter(torch.ones(3, 2))
    w.grad = torch.zeros(3, 2)
    optimizer = kind([w], lr=1.0)
    optimizer.step()
    assert torch.equal(w, torch.ones(3, 2))
    assert (
        optimizer.param_groups[0]["weight_decay"] == torch.optim.SGD([w]).defaults["weight_decay"]
    )


def test_split_weight_decay_spares_normalisation_only() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.Sequential(nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 1)),
        nn.Flatten(),
        nn.LayerNorm(4),
        nn.Linear(4, 2),
    )
    decayed, free = split_weight_decay(model, 0.5)
    names = {id(p): name for name, p in model.named_parameters()}
    assert decayed["weight_decay"] == 0.5
    assert free["weight_decay"] == 0.0
    assert [names[id(p)] for p in free["params"]] == [
        "1.weight", "1.bias", "2.0.weight", "2.0.bias", "4.weight", "4.bias",
    ]  # fmt: skip
    assert [names[id(p)] for p in decayed["params"]] == [
        "0.weight", "2.1.weight", "2.1.bias", "5.weight", "5.bias",
    ]  # fmt: skip


def test_groups_follow_their_own_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double()
    optimizer = SGD(split_weight_decay(model, 0.5), lr=0.1, momentum=0.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        factor = 1.0 if name.startswith("1.") else 1 - 0.1 * 0.5
        torch.testing.assert_close(p.detach(), factor * before[name], rtol=1e-15, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -0.1}, "lr must be at least 0"),
        ({"lr": float("nan")}, "lr must be at least 0"),
        ({"lr": 0.1, "momentum": 1.0}, r"momentum must lie in \[0, 1\)"),
        ({"lr": 0.1, "weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"lr": 0.1, "form": "other"}, "form must be one of reference, absorbed, not 'other'"),
        ({"lr": 0.0, "form": "absorbed"}, 'use form="reference" for a rate of 0'),
    ],
)
def test_bad_options_are_refused_by_name(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SGD([nn.Parameter(torch.zeros(2))], **options)


def test_a_rate_set_wrongly_later_is_refused_before_any_update() -> None:
    w = nn.Parameter(torch.ones(2))
    optimizer = SGD([w], lr=0.1)
    w.grad = torch.ones(2)
    optimizer.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr must be at least 0, not -1"):
        optimizer.step()
    assert torch.equal(w.detach(), torch.ones(2))


def test_sparse_gradients_are_refused_in_words() -> None:
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="dense gradients"):
        SGD(table.parameters(), lr=0.1).step()
