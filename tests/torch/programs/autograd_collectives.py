"""torch.distributed.nn: collectives that autograd passes through, against one process."""

import warnings
from collections.abc import Callable

import torch
import torch.distributed.nn.functional as nn_functional
from harness import RANK, WORLD_SIZE, main, raises
from torch import Tensor

ALL = range(WORLD_SIZE)
ROOT = WORLD_SIZE - 1
Lists = list[list[Tensor]]  # [rank][part]


def draw(*shape: int) -> list[Tensor]:
    """A tensor for each rank; the same on every rank."""
    generator = torch.Generator().manual_seed(9)
    return list(torch.randn(WORLD_SIZE, *shape, generator=generator).unbind())


def loss(outputs: list[Tensor], rank: int) -> Tensor:
    """Weighs the elements, so that each has a gradient of its own."""
    flat = torch.cat([output.flatten() for output in outputs])
    return (flat * torch.arange(1.0, len(flat) + 1) * (rank + 1)).square().sum()


def assert_like_one_process(
    collective: Callable[[Tensor], list[Tensor]],
    together: Callable[[list[Tensor]], Lists],
    shape: tuple[int, ...] = (6, 2),
    judges: range | tuple[int, ...] = ALL,
) -> None:
    """Compares outputs and the input's gradient, where the ranks in `judges` have a loss."""
    mine = draw(*shape)[RANK].requires_grad_()
    outputs = collective(mine)
    everyone = [x.requires_grad_() for x in draw(*shape)]
    expected = together(everyone)
    if RANK in judges:
        assert len(outputs) == len(expected[RANK])
        for x, y in zip(outputs, expected[RANK], strict=True):
            assert torch.allclose(x, y, atol=1e-6), (x, y)
    factor = 1.0 if RANK in judges else 0.0
    (loss(outputs, RANK) * factor).backward()
    sum(loss(expected[rank], rank) for rank in judges).backward()
    assert torch.allclose(mine.grad, everyone[RANK].grad, rtol=1e-4), collective


def check_all_reduce() -> None:
    assert_like_one_process(
        lambda x: [nn_functional.all_reduce(x * x)],
        lambda every: [[sum(x * x for x in every)] for _ in ALL],
    )


def check_broadcast() -> None:
    def together(every: list[Tensor]) -> Lists:
        zeros = sum(x * 0 for x in every)  # only the root's input counts
        return [[every[ROOT] * 1 + zeros] for _ in ALL]

    assert_like_one_process(lambda x: [nn_functional.broadcast(x, ROOT)], together)


def check_reduce() -> None:
    assert_like_one_process(
        lambda x: [nn_functional.reduce(x * 2, ROOT)],
        lambda every: [[sum(x * 2 for x in every)] for _ in ALL],
        judges=(ROOT,),
    )


def check_reduce_scatter() -> None:
    def scattered(x: Tensor) -> list[Tensor]:
        parts = list(x.sin().chunk(WORLD_SIZE))
        return [nn_functional.reduce_scatter(torch.empty_like(parts[0]), parts)]

    def together(every: list[Tensor]) -> Lists:
        return [[part] for part in sum(x.sin() for x in every).chunk(WORLD_SIZE)]

    assert_like_one_process(scattered, together, (2 * WORLD_SIZE, 3))


def check_torch_has_no_gradient_of_all_gather_base_but_for_nccl() -> None:
    x, output = torch.ones(2, requires_grad=True), torch.empty(2 * WORLD_SIZE)
    gathered = nn_functional._all_gather_base(output, x)
    message = raises(RuntimeError, lambda: gathered.sum().backward())
    assert "not supported" in message


# The rest needs scatter and all_to_all.


def check_all_gather() -> None:
    assert_like_one_process(
        lambda x: list(nn_functional.all_gather(x.sin())),
        lambda every: [[x.sin() for x in every] for _ in ALL],
    )


def check_gather() -> None:
    assert_like_one_process(
        lambda x: list(nn_functional.gather(x.sin(), ROOT)),
        lambda every: [[x.sin() for x in every] for _ in ALL],
        judges=(ROOT,),
    )


def check_scatter() -> None:
    def scattered(x: Tensor) -> list[Tensor]:
        return [nn_functional.scatter(list(x.sin().chunk(WORLD_SIZE)), ROOT)]

    def together(every: list[Tensor]) -> Lists:
        zeros = [x * 0 for x in every]  # only the root's input counts
        return [[part] for part in (every[ROOT].sin() + sum(zeros)).chunk(WORLD_SIZE)]

    assert_like_one_process(scattered, together, (2 * WORLD_SIZE, 3))


def check_all_to_all() -> None:
    def exchanged(x: Tensor) -> list[Tensor]:
        parts = list(x.sin().chunk(WORLD_SIZE))
        return list(nn_functional.all_to_all([torch.empty_like(part) for part in parts], parts))

    def together(every: list[Tensor]) -> Lists:
        return [[x.sin().chunk(WORLD_SIZE)[rank] for x in every] for rank in ALL]

    assert_like_one_process(exchanged, together, (2 * WORLD_SIZE, 3))


def check_all_to_all_single_with_splits() -> None:
    rows = [[(sender + receiver) % 3 for receiver in ALL] for sender in ALL]
    most = max(sum(row) for row in rows)

    def exchanged(x: Tensor) -> list[Tensor]:
        here, there = [rows[rank][RANK] for rank in ALL], rows[RANK]
        output = torch.empty(sum(here), 3)
        x = x.sin()[: sum(there)]
        return [nn_functional.all_to_all_single(output, x, here, there)]

    def together(every: list[Tensor]) -> Lists:
        split = [x.sin()[: sum(row)].split(row) for x, row in zip(every, rows, strict=True)]
        return [[torch.cat([parts[rank] for parts in split])] for rank in ALL]

    assert_like_one_process(exchanged, together, (most, 3))


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=UserWarning)
    main(dict(globals()))
