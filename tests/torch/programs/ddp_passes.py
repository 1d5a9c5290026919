"""Which backward passes of DistributedDataParallel reduce: each graph carries its own flag."""

from dataclasses import dataclass

import torch
from harness import RANK, WORLD_SIZE, main
from models import alike, near
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from allreduce.torch import DistributedDataParallel as OurDDP


def layers() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def inputs(rank: int = RANK, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(100 * seed + rank)
    return torch.randn(2, 4, generator=generator)


def of_ranks(seeds: list[int], ranks: range | list[int] = range(WORLD_SIZE)) -> list[Tensor]:
    """The mean over ranks of the gradients of the sum of the outputs for some minibatches."""
    module = layers()
    for rank in ranks:
        for seed in seeds:
            (module(inputs(rank, seed)).sum() / len(ranks)).backward()
    return [p.grad for p in module.parameters()]


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters()]


def is_reduced(model: nn.Module, seeds: list[int]) -> bool:
    return near(gradients(model), of_ranks(seeds))


def is_local(model: nn.Module, seeds: list[int]) -> bool:
    return near(gradients(model), of_ranks(seeds, [RANK]))


def check_a_forward_in_no_sync_leaves_an_earlier_graph_alone() -> None:
    model = OurDDP(layers())
    output = model(inputs())
    with model.no_sync():
        model(inputs(seed=1))
    output.sum().backward()
    assert is_reduced(model, [0])


def check_a_later_forward_leaves_a_graph_of_no_sync_alone() -> None:
    model = OurDDP(layers())
    with model.no_sync():
        output = model(inputs())
    other = model(inputs(seed=1))
    output.sum().backward()
    assert is_local(model, [0])
    assert model.statistics()["passes"] == 0
    other.sum().backward()
    assert is_reduced(model, [0, 1])


def check_a_backward_inside_no_sync_of_a_graph_outside_reduces() -> None:
    model = OurDDP(layers())
    output = model(inputs())
    with model.no_sync():
        output.sum().backward()
    assert is_reduced(model, [0])


def check_a_pass_through_both_kinds_of_graph_reduces() -> None:
    for first in (True, False):
        model = OurDDP(layers())
        outputs = []
        for sync in (first, not first):
            if sync:
                outputs.append(model(inputs(seed=len(outputs))))
                continue
            with model.no_sync():
                outputs.append(model(inputs(seed=len(outputs))))
        sum(output.sum() for output in outputs).backward()
        assert is_reduced(model, [0, 1]), first
        assert model.statistics()["passes"] == 1


class Halves(nn.Module):
    """Two branches, of which a forward uses one: passes end before or after the other's flag."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.branches = nn.ModuleList(nn.Linear(4, 3) for _ in range(2))

    def forward(self, x: Tensor, which: int) -> Tensor:
        return self.branches[which](x)


def check_gradients_before_the_flag_of_the_reducing_graph_are_reduced() -> None:
    for local in range(2):
        model = OurDDP(Halves())
        outputs = [None, None]
        with model.no_sync():
            outputs[local] = model(inputs(), local)
        outputs[1 - local] = model(inputs(), 1 - local)
        (outputs[local].sum() + outputs[1 - local].square().sum()).backward()
        assert all(alike(p.grad) for p in model.parameters()), local


def check_accumulated_gradients_of_a_layer_that_the_last_pass_skips() -> None:
    model = OurDDP(Halves())
    with model.no_sync():
        model(inputs(), 0).sum().backward()
    model(inputs(), 1).sum().backward()
    assert all(alike(p.grad) for p in model.parameters())


@dataclass
class Plain:
    """An output that torch's pytrees do not know."""

    logits: Tensor
    more: list


class Held:
    """An output of any class."""

    def __init__(self, logits: Tensor) -> None:
        self.logits, self.itself = logits, self


def check_outputs_of_any_kind_carry_the_flag() -> None:
    kinds = [
        lambda y: {"logits": y},
        lambda y: (None, [y]),
        lambda y: Plain(torch.zeros(1), ["text", y]),
        Held,
    ]
    found = [
        lambda o: o["logits"],
        lambda o: o[1][0],
        lambda o: o.more[1],
        lambda o: o.logits,
    ]

    class Wrapped(nn.Module):
        def __init__(self, number: int) -> None:
            super().__init__()
            self.layers, self.number = layers(), number

        def forward(self, x: Tensor) -> object:
            return kinds[self.number](self.layers(x))

    for number, find in enumerate(found):
        model = OurDDP(Wrapped(number))
        output = model(inputs())
        with model.no_sync():
            local = model(inputs(seed=1))
        find(output).sum().backward()
        assert is_reduced(model, [0]), number
        model.zero_grad()
        find(local).sum().backward()
        assert is_local(model, [1]), number


def check_a_dataclass_after_a_reentrant_checkpoint() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers()

        def forward(self, x: Tensor) -> Plain:
            x = self.layers[0](x)
            return Plain(checkpoint(self.layers[1:], x, use_reentrant=True), [])

    model = OurDDP(Checkpointed())
    model(inputs()).logits.sum().backward()
    assert is_reduced(model, [0])


def check_what_no_output_shows_follows_the_last_forward() -> None:
    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.loss = layers(), None

        def forward(self, x: Tensor) -> None:
            self.loss = self.layers(x).sum()

    model = OurDDP(Loss())
    model(inputs())
    model.module.loss.backward()
    assert is_reduced(model, [0])
    model.zero_grad()
    with model.no_sync():
        model(inputs())
        model.module.loss.backward()
    assert is_local(model, [0])


if __name__ == "__main__":
    main(dict(globals()))
