"""Point to point: between all pairs, and pipelines of torch.distributed.pipelining."""

import warnings

import torch
import torch.distributed as dist
import torch.nn.functional as F
from harness import RANK, WORLD_SIZE, main
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    SplitPoint,
    pipeline,
)

RANKS = range(WORLD_SIZE)
WIDTH, BATCH, MICROBATCHES = 12, 16, 8


def check_batches_between_all_pairs() -> None:
    for count in (1, 3, 100_000):
        received = [torch.empty(count) for _ in RANKS]
        operations = []
        for rank in RANKS:
            if rank != RANK:
                x = torch.full((count,), 10.0 * RANK + rank)
                operations.append(dist.P2POp(dist.isend, x, rank))
                operations.append(dist.P2POp(dist.irecv, received[rank], rank))
        for work in dist.batch_isend_irecv(operations):
            work.wait()
        for rank in RANKS:
            expected = 0.0 if rank == RANK else 10.0 * rank + RANK
            assert rank == RANK or bool((received[rank] == expected).all()), (rank, count)


def check_object_lists_between_two_ranks() -> None:
    give, take = dist.send_object_list, dist.recv_object_list
    if RANK == 0:
        give([{"text": "abc"}, 5], dst=1)
    elif RANK == 1:
        things = [None, None]
        take(things, src=0)
        assert things == [{"text": "abc"}, 5]


def layer(number: int) -> nn.Module:
    torch.manual_seed(number)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x, target = torch.randn(2, BATCH, WIDTH, generator=generator).unbind()
    return x, target


def alone(layers: int) -> tuple[Tensor, list[nn.Module]]:
    modules = [layer(number) for number in range(layers)]
    x, target = data()
    loss = F.mse_loss(nn.Sequential(*modules)(x), target)
    loss.backward()
    return loss, modules


def assert_gradients(mine: nn.Module, expected: nn.Module) -> None:
    for p, q in zip(mine.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-6)


def run(schedule: object, first: bool, last: bool) -> list[Tensor]:
    x, target = data()
    losses: list[Tensor] = []
    inputs = (x,) if first else ()
    schedule.step(*inputs, **({"target": target, "losses": losses} if last else {}))
    return losses


def check_one_stage_on_each_rank() -> None:
    loss, modules = alone(WORLD_SIZE)
    for kind in (ScheduleGPipe, Schedule1F1B):
        mine = layer(RANK)
        stage = PipelineStage(mine, RANK, WORLD_SIZE, torch.device("cpu"))
        schedule = kind(stage, MICROBATCHES, loss_fn=F.mse_loss)
        losses = run(schedule, RANK == 0, RANK == WORLD_SIZE - 1)
        assert_gradients(mine, modules[RANK])
        if losses:
            assert torch.allclose(torch.stack(losses).mean(), loss)


def check_two_stages_on_each_rank() -> None:
    loss, modules = alone(2 * WORLD_SIZE)
    numbers = (RANK, RANK + WORLD_SIZE)
    mine = [layer(number) for number in numbers]
    stages = [
        PipelineStage(each, number, 2 * WORLD_SIZE, torch.device("cpu"))
        for each, number in zip(mine, numbers, strict=True)
    ]
    schedule = ScheduleInterleaved1F1B(stages, MICROBATCHES, loss_fn=F.mse_loss)
    losses = run(schedule, RANK == 0, RANK == WORLD_SIZE - 1)
    for each, number in zip(mine, numbers, strict=True):
        assert_gradients(each, modules[number])
    if losses:
        assert torch.allclose(torch.stack(losses).mean(), loss)


def check_a_module_that_torch_splits() -> None:
    _, modules = alone(WORLD_SIZE)
    whole = nn.Sequential(*(layer(number) for number in RANKS))
    split = pipeline(
        whole,
        (data()[0][: BATCH // MICROBATCHES],),
        split_spec={str(number): SplitPoint.BEGINNING for number in RANKS[1:]},
    )
    stage = split.build_stage(RANK, torch.device("cpu"))
    schedule = Schedule1F1B(stage, MICROBATCHES, loss_fn=F.mse_loss)
    run(schedule, RANK == 0, RANK == WORLD_SIZE - 1)
    assert_gradients(stage.submod, modules[RANK])


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=UserWarning)
    main(dict(globals()))
