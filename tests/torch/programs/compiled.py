"""Functional collectives: eager and under torch.compile, against one process."""

import warnings
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from harness import RANK, WORLD_SIZE, main
from models import near, network, step
from replicas import Plain, Replicas, sgd, weights
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

RANKS = range(WORLD_SIZE)
Collective = Callable[[Tensor], Tensor]


def draw(*shape: int) -> list[Tensor]:
    """A tensor for each rank; the same on every rank."""
    generator = torch.Generator().manual_seed(9)
    return list(torch.randn(WORLD_SIZE, *shape, generator=generator).unbind())


EVERY = draw(4 * WORLD_SIZE, 2 * WORLD_SIZE)
SUM = sum(EVERY)


def world() -> dist.ProcessGroup:
    return dist.group.WORLD


def gathered(x: Tensor) -> Tensor:
    return functional.all_gather_tensor(x, 1, world()) * 2


def scattered(x: Tensor) -> Tensor:
    return functional.reduce_scatter_tensor(x * 2, "avg", 1, world())


def coalesced(x: Tensor) -> Tensor:
    a, b = functional.all_reduce_coalesced([x, x + 1], "sum", world())
    parts = functional.all_gather_into_tensor_coalesced([x, x[:1]], world())
    halves = functional.reduce_scatter_tensor_coalesced([x, x], "sum", [0, 1], world())
    return torch.cat([y.flatten() for y in (a, b, *parts, *halves)])


def expected_coalesced() -> Tensor:
    rows, columns = (SUM.chunk(WORLD_SIZE, dim)[RANK] for dim in (0, 1))
    parts = [SUM, SUM + WORLD_SIZE, *EVERY, *(x[:1] for x in EVERY), rows, columns]
    return torch.cat([y.flatten() for y in parts])


def in_place(x: Tensor) -> Tensor:
    """torch's ordinary collectives, which the compiler makes functional."""
    x = x + 1
    dist.all_reduce(x)
    y = torch.empty(WORLD_SIZE * len(x), x.shape[1])
    dist.all_gather_into_tensor(y, x)
    return y


FUNCTIONS: list[tuple[Collective, Callable[[], Tensor]]] = [
    (lambda x: functional.all_reduce(x + 1, "sum", world()) * 3, lambda: (SUM + WORLD_SIZE) * 3),
    (lambda x: functional.all_reduce(x, "max", world()), lambda: torch.stack(EVERY).amax(0)),
    (lambda x: functional.broadcast(x, WORLD_SIZE - 1, world()), lambda: EVERY[-1]),
    (gathered, lambda: torch.cat(EVERY, 1) * 2),
    (scattered, lambda: (SUM * 2 / WORLD_SIZE).chunk(WORLD_SIZE, 1)[RANK]),
    (coalesced, expected_coalesced),
    (in_place, lambda: (SUM + WORLD_SIZE).repeat(WORLD_SIZE, 1)),
]


def assert_all_right(compiled: Callable[[Collective], Collective]) -> None:
    for function, expected in FUNCTIONS:
        assert torch.allclose(compiled(function)(EVERY[RANK]), expected(), atol=1e-6), function


def check_eager() -> None:
    assert_all_right(lambda function: function)


def check_aot_eager() -> None:
    assert_all_right(lambda f: torch.compile(f, backend="aot_eager", fullgraph=True))


def assert_gradients(compiled: Callable[[Collective], Collective]) -> None:
    def gather(x: Tensor) -> Tensor:
        return functional.all_gather_single_autograd(x.sin(), 0, world())

    def scatter(x: Tensor) -> Tensor:
        return functional.reduce_scatter_single_autograd(x.sin(), "sum", 0, world())

    for function, together in (
        (gather, lambda every: [torch.cat([x.sin() for x in every])] * WORLD_SIZE),
        (scatter, lambda every: sum(x.sin() for x in every).chunk(WORLD_SIZE)),
    ):
        mine = EVERY[RANK].clone().requires_grad_()
        every = [x.clone().requires_grad_() for x in EVERY]
        output = compiled(function)(mine)
        (output.square() * (RANK + 1)).sum().backward()
        outputs = together(every)
        sum((y.square() * (rank + 1)).sum() for rank, y in enumerate(outputs)).backward()
        assert torch.allclose(output, outputs[RANK], atol=1e-6)
        assert torch.allclose(mine.grad, every[RANK].grad, atol=1e-5)


def check_gradients_eager() -> None:
    assert_gradients(lambda function: function)


def check_gradients_aot_eager() -> None:
    assert_gradients(lambda f: torch.compile(f, backend="aot_eager"))


def train(model: torch.nn.Module, compiled: Callable[..., object]) -> torch.nn.Module:
    optimizer = sgd(model.parameters())
    for seed in range(3):
        step(compiled, seed)
        optimizer.step()
        optimizer.zero_grad()
    return model


def check_compiled_ddp() -> None:
    model = DistributedDataParallel(network(Plain))
    train(model, torch.compile(model, backend="aot_eager"))
    assert near(weights(model), weights(Replicas(Plain).train(range(3))), 1e-5)


def check_compiled_fully_shard() -> None:
    model = fully_shard(network(Plain), mesh=init_device_mesh("cpu", (WORLD_SIZE,)))
    train(model, torch.compile(model, backend="aot_eager"))
    whole = [p.full_tensor().detach() for p in model.parameters()]
    assert near(whole, weights(Replicas(Plain).train(range(3))), 1e-5)


# The rest needs all_to_all.


def exchange(x: Tensor) -> Tensor:
    return functional.all_to_all_single(x * 2, None, None, world())


def exchange_unevenly(x: Tensor) -> Tensor:
    """Rank a sends a + b rows to rank b."""
    splits = [RANK + rank for rank in RANKS]
    return functional.all_to_all_single(x[: sum(splits)], splits, splits, world())


def check_all_to_all_eager_and_compiled() -> None:
    even = [x.chunk(WORLD_SIZE)[RANK] * 2 for x in EVERY]
    uneven = []
    for sender, x in enumerate(EVERY):
        begin = sum(sender + rank for rank in range(RANK))
        uneven.append(x[begin : begin + sender + RANK])
    for function, expected in ((exchange, even), (exchange_unevenly, uneven)):
        for each in (function, torch.compile(function, backend="aot_eager", fullgraph=True)):
            assert torch.equal(functional.wait_tensor(each(EVERY[RANK])), torch.cat(expected))


def check_gradients_of_all_to_all() -> None:
    def function(x: Tensor) -> Tensor:
        return functional.all_to_all_single_autograd(x.sin(), None, None, world())

    for each in (function, torch.compile(function, backend="aot_eager")):
        mine = EVERY[RANK].clone().requires_grad_()
        output = each(mine)
        output.square().sum().backward()
        assert torch.allclose(mine.grad, 2 * EVERY[RANK].sin() * EVERY[RANK].cos(), atol=1e-6)
        parts = [x.sin().chunk(WORLD_SIZE)[RANK] for x in EVERY]
        assert torch.allclose(output, torch.cat(parts), atol=1e-6)


def check_a_permutation_of_the_ranks() -> None:
    to = [(rank + 1) % WORLD_SIZE for rank in RANKS]
    x = functional.permute_tensor(EVERY[RANK].flatten(), to, world())
    assert torch.equal(functional.wait_tensor(x), EVERY[RANK - 1].flatten())


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=UserWarning)
    main(dict(globals()))
