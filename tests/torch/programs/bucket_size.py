"""DistributedDataParallel(bucket_bytes="auto"): right gradients, one choice on all ranks."""

import torch
from harness import RANK, WORLD_SIZE, main, raises
from models import alike, grads, near, network, same, step
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as StockDDP

import allreduce
from allreduce.torch import DistributedDataParallel as OurDDP
from allreduce.torch.ddp import bucket_size

PASSES = 3  # that are measured


def small_of_rank_0(*_: object, **__: object) -> int:
    """In place of `choose`: what only rank 0 may decide."""
    return 300_000 if RANK == 0 else 1 << 30


def check_the_first_module_measures_the_group_once() -> None:
    comm = allreduce.torch.communicator()
    assert comm.tuning is None or comm.tuning.brief  # no module was made before
    OurDDP(network(), algo="halving_doubling")
    assert comm.tuning is None or comm.tuning.brief  # there is nothing to choose
    several = comm.num_nodes > 1
    model = OurDDP(network())
    first = comm.tuning
    assert first is None or first.brief != several
    step(model, 1)
    OurDDP(network())
    assert comm.tuning is first


def check_training_is_that_of_fixed_buckets() -> None:
    models = [OurDDP(network(), bucket_bytes=size) for size in ("auto", 4 << 20)]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in models]
    for seed in range(PASSES + 3):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            step(model, seed)
            optimizer.step()
        assert near(grads(models[0]), grads(models[1]), 1e-5), seed
    assert near(list(models[0].parameters()), list(models[1].parameters()), 1e-5)
    assert all(alike(p) for p in models[0].parameters())
    assert alike(torch.tensor([models[0].statistics()["bucket_bytes"]]))


def check_all_ranks_take_the_choice_of_rank_0_once() -> None:
    real, bucket_size.choose = bucket_size.choose, small_of_rank_0
    model, stock = OurDDP(network(), bucket_bytes="auto"), StockDDP(network())
    seen = []
    for seed in range(PASSES + 3):
        for each in (model, stock):
            each.zero_grad()
            step(each, seed)
        assert near(grads(model), grads(stock), 1e-6), seed
        statistics = model.statistics()
        seen.append((statistics["bucket_bytes"], statistics["buckets"]))
    bucket_size.choose = real
    assert seen[: PASSES - 1] == [(4 << 20, 1)] * (PASSES - 1), seen
    assert seen[PASSES - 1 :] == [(300_000, seen[-1][1])] * 4, seen
    assert seen[-1][1] > 2, seen


def check_gradients_of_the_pass_before_the_change_are_kept() -> None:
    real, bucket_size.choose = bucket_size.choose, small_of_rank_0
    ours, stock = OurDDP(network(), bucket_bytes="auto"), StockDDP(network())
    for seed in range(PASSES + 1):  # never zeroed: each pass adds to what the last has left
        for model in (ours, stock):
            step(model, seed)
        assert near(grads(ours), grads(stock), 1e-5), seed
    bucket_size.choose = real


def check_no_sync() -> None:
    real, bucket_size.choose = bucket_size.choose, small_of_rank_0
    ours, stock = OurDDP(network(), bucket_bytes="auto"), StockDDP(network())
    for turn in range(PASSES + 1):
        for model in (ours, stock):
            model.zero_grad()
            with model.no_sync():
                step(model, 1)
            step(model, turn)
        assert near(grads(ours), grads(stock), 1e-5), turn
        expected = 300_000 if turn >= PASSES - 1 else 4 << 20  # passes without sync do not count
        assert ours.statistics()["bucket_bytes"] == expected, turn
    bucket_size.choose = real


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.always = nn.Linear(4, 4)
        self.sometimes = nn.Linear(4, 4)
        self.never = nn.Linear(4, 4)

    def forward(self, x: Tensor, both: bool) -> Tensor:
        x = self.always(x)
        return self.sometimes(x) if both else x


def check_unused_parameters() -> None:
    real, bucket_size.choose = bucket_size.choose, lambda *_, **__: 0
    ours = OurDDP(network(Branches), find_unused_parameters=True, bucket_bytes="auto")
    stock = StockDDP(network(Branches), find_unused_parameters=True)
    for users in ([0], [], [WORLD_SIZE - 1], range(WORLD_SIZE), [0]):
        for model in (ours, stock):
            model.zero_grad()
            model(torch.full((2, 4), RANK + 1.0), RANK in users).sum().backward()
        assert same(ours, stock), users
    bucket_size.choose = real
    assert ours.statistics()["buckets"] == 6


def check_what_it_cannot_be_is_refused() -> None:
    for wrong in ("large", -1, 2.5):
        message = raises(
            allreduce.UsageError, lambda wrong=wrong: OurDDP(network(), bucket_bytes=wrong)
        )
        assert f"bucket_bytes={wrong!r}" in message
        assert '"auto"' in message
    mixed = "auto" if RANK == 0 else 4 << 20
    raises(allreduce.MismatchError, lambda: OurDDP(network(), bucket_bytes=mixed))


if __name__ == "__main__":
    main(dict(globals()))
