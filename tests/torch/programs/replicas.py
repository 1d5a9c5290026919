"""The reference of the feature programs: all ranks' replicas of a network, in this one process."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from harness import WORLD_SIZE
from models import Network, batches, network
from torch import Tensor, nn

LEARNING_RATE = 0.05
EVERYONE = (tuple(range(WORLD_SIZE)),)

Groups = Iterable[tuple[int, ...]]
Optimizers = Callable[[Iterable[Tensor]], torch.optim.Optimizer]


def sgd(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=LEARNING_RATE, momentum=0.9)


class Plain(nn.Sequential):
    """No scalar, no channels-last weight: some of torch's features cannot do with them."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(192, 61), nn.ReLU(), nn.Linear(61, 7))


class Replicas:
    """One network per rank; what collectives would do between them is done by `average`."""

    def __init__(
        self,
        kind: type[nn.Module] = Network,
        optimizer: Optimizers = sgd,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.modules = [network(kind).to(dtype) for _ in range(WORLD_SIZE)]
        self.optimizers = [optimizer(module.parameters()) for module in self.modules]

    def backward(self, seed: int) -> None:
        for module, (x, target) in zip(self.modules, batches(seed), strict=True):
            dtype = next(module.parameters()).dtype
            F.cross_entropy(module(x.to(dtype)), target).backward()

    def average_gradients(self, groups: Groups = EVERYONE) -> None:
        for group in groups:
            for parameters in self._alike(group):
                mean = sum(p.grad for p in parameters) / len(group)
                for p in parameters:
                    p.grad = mean.clone()

    def average_parameters(self, groups: Groups = EVERYONE) -> None:
        for group in groups:
            for parameters in self._alike(group):
                mean = sum(p.detach() for p in parameters) / len(group)
                for p in parameters:
                    p.data.copy_(mean)

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()

    def train(self, seeds: Iterable[int]) -> nn.Module:
        """What data-parallel training does; the module that every rank then has."""
        for seed in seeds:
            self.backward(seed)
            self.average_gradients()
            self.step()
        return self.modules[0]

    def _alike(self, group: tuple[int, ...]) -> Iterable[tuple[Tensor, ...]]:
        return zip(*(self.modules[rank].parameters() for rank in group), strict=True)


def weights(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]
