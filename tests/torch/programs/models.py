"""A network, its minibatches, and comparisons of gradients."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from harness import RANK, WORLD_SIZE
from torch import Tensor, nn

BATCH = 3  # per rank


class Network(nn.Module):
    """Odd sizes, a channels-last weight, a parameter used twice, a scalar parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, bias=False).to(memory_format=torch.channels_last)
        self.wide = nn.Linear(5 * 6 * 6, 401)
        self.norm = nn.GroupNorm(1, 401)
        self.square = nn.Linear(401, 401)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.head = nn.Linear(401, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x)).flatten(1)
        x = self.square(F.relu(self.norm(self.wide(x))))
        return self.head(F.relu(self.square(x)) * self.scale)


def network(kind: type[nn.Module] = Network) -> nn.Module:
    torch.manual_seed(1)
    return kind()


def batches(seed: int) -> list[tuple[Tensor, Tensor]]:
    """The minibatch of each rank; the same on every rank."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(BATCH, 3, 8, 8, generator=generator),
            torch.randint(7, (BATCH,), generator=generator),
        )
        for _ in range(WORLD_SIZE)
    ]


def step(model: nn.Module, seed: int = 0) -> None:
    x, target = batches(seed)[RANK]
    F.cross_entropy(model(x), target).backward()


def grads(model: nn.Module) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def same(a: nn.Module, b: nn.Module) -> bool:
    """The same bits."""
    pairs = zip(grads(a), grads(b), strict=True)
    return all((x is None and y is None) or torch.equal(x, y) for x, y in pairs)


def near(mine: list[Tensor], expected: list[Tensor], relative: float = 1e-6) -> bool:
    """The whole gradients differ by no more than a fraction of their length."""
    x, y = (torch.cat([g.flatten() for g in each]).double() for each in (mine, expected))
    return bool((x - y).norm() <= relative * y.norm())


def alike(tensor: Tensor) -> bool:
    """The same bits on all ranks."""
    every = [torch.empty_like(tensor) for _ in range(WORLD_SIZE)]
    dist.all_gather(every, tensor.detach().contiguous())
    return all(torch.equal(other, every[0]) for other in every)
