"""What the cases of ddp_cases.py have in common."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from harness import RANK
from torch import Tensor, nn

Wrap = Callable[..., nn.Module]
STEPS = 3


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))


def x(seed: int = 0, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * seed + RANK)
    return torch.randn(*(shape or (5, 6)), generator=generator)


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def grads(model: nn.Module) -> list[Tensor]:
    return [torch.zeros(()) if p.grad is None else p.grad.clone() for p in model.parameters()]


def train(
    model: nn.Module,
    make: Callable[[Any], torch.optim.Optimizer] = lambda p: torch.optim.SGD(p, 0.1),
    between: Callable[[nn.Module], object] = lambda model: None,
    steps: range = range(STEPS),
) -> list[Tensor]:
    optimizer = make(model.parameters())
    for seed in steps:
        optimizer.zero_grad()
        model(x(seed)).square().mean().backward()
        between(model)
        optimizer.step()
    return weights(model)


@dataclass
class Data:
    logits: Tensor
    other: str = ""
