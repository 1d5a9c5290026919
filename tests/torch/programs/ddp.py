"""Gradients of DistributedDataParallel: against one process on the whole minibatch, and torch's."""

import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from harness import RANK, WORLD_SIZE, main, raises
from models import BATCH, Network, alike, batches, grads, near, network, same, step
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as StockDDP

import allreduce
from allreduce.torch import DistributedDataParallel as OurDDP


def check_gradients_equal_one_process_on_the_whole_minibatch() -> None:
    for dtype, relative in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        alone = network().to(dtype)
        x, target = (torch.cat(parts) for parts in zip(*batches(0), strict=True))
        F.cross_entropy(alone(x.to(dtype)), target).backward()
        for bucket_bytes in (0, 100_000, 4 << 20):
            model = OurDDP(network().to(dtype), bucket_bytes=bucket_bytes)
            x, target = batches(0)[RANK]
            F.cross_entropy(model(x.to(dtype)), target).backward()
            assert near(grads(model), grads(alone), relative), (dtype, bucket_bytes)


def check_summed_losses_over_kn_equal_the_mean() -> None:
    model = OurDDP(network(), op="sum")
    x, target = batches(0)[RANK]
    kn = BATCH * WORLD_SIZE
    (F.cross_entropy(model(x), target, reduction="sum") / kn).backward()
    mean = OurDDP(network())
    step(mean)
    assert near(grads(model), grads(mean))


def check_the_same_bits_as_torch_on_the_same_backend() -> None:
    stock = StockDDP(network())
    models = [OurDDP(network(), bucket_bytes=b) for b in (0, 100_000, 4 << 20)]
    for seed in range(3):
        for model in [stock, *models]:
            model.zero_grad()
            step(model, seed)
        assert all(same(model, stock) for model in models), seed


def check_torch_ddp_on_hier_equals_gloo() -> None:
    hier = StockDDP(network())
    gloo = StockDDP(network(), process_group=dist.new_group(backend="gloo"))
    for seed in range(3):
        for model in (hier, gloo):
            model.zero_grad()
            step(model, seed)
        assert near(grads(hier), grads(gloo)), seed


def check_training_keeps_all_ranks_alike() -> None:
    torch.manual_seed(RANK)  # rank 0's parameters win
    model = OurDDP(Network(), bucket_bytes=50_000)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for seed in range(4):
        optimizer.zero_grad()
        step(model, seed)
        optimizer.step()
    assert all(alike(p) for p in model.parameters())


def check_number_of_buckets() -> None:
    sizes = [p.nbytes for p in network().parameters()]
    for bucket_bytes, least, most in [(0, len(sizes), len(sizes)), (1 << 30, 1, 1)]:
        model = OurDDP(network(), bucket_bytes=bucket_bytes)
        step(model)
        statistics = model.statistics()
        assert least <= statistics["buckets"] <= most, statistics
        assert sum(sizes) <= statistics["bytes_reduced"] <= sum(sizes) + 64 * len(sizes)
        assert statistics["passes"] == 1
        assert statistics["exposed_seconds"] > 0
        largest = max(sizes) if bucket_bytes == 0 else sum(sizes)
        assert largest <= statistics["largest_bucket_bytes"] <= largest + 64 * len(sizes)


def check_gradients_are_views_of_few_buckets() -> None:
    model = OurDDP(network())
    for seed in range(3):
        model.zero_grad()
        step(model, seed)
    storages = {p.grad.untyped_storage().data_ptr() for p in model.parameters()}
    assert len(storages) == 1
    assert all(p.grad.stride() == p.stride() for p in model.parameters())


def check_no_sync_adds_up_as_torch_does() -> None:
    ours, stock = OurDDP(network(), bucket_bytes=100_000), StockDDP(network())
    for _ in range(2):
        for model in (ours, stock):
            model.zero_grad()
            with model.no_sync():
                step(model, 1)
                step(model, 2)
            step(model, 3)
        assert same(ours, stock)


def check_no_sync_is_local() -> None:
    model = OurDDP(network())
    before = model.statistics()["bytes_reduced"]
    with model.no_sync():
        step(model)
    assert model.statistics()["bytes_reduced"] == before
    assert not alike(model.module.head.weight.grad)


def check_reduced_gradients_can_be_added_to() -> None:
    for zero in (False, True):
        ours, stock, summed = OurDDP(network()), StockDDP(network()), OurDDP(network(), op="sum")
        for seed in range(3):
            for model in (ours, stock, summed):
                step(model, seed)
        assert near(grads(ours), grads(stock))
        scaled = [g / WORLD_SIZE for g in grads(summed)]
        assert near(scaled, grads(stock))
        if zero:
            for model in (ours, stock, summed):
                model.zero_grad(set_to_none=False)
                step(model, 7)
            assert near([g / WORLD_SIZE for g in grads(summed)], grads(stock))
            assert same(ours, stock)


def check_sum_with_no_sync_after_a_reduction() -> None:
    model, stock = OurDDP(network(), op="sum"), StockDDP(network())
    for each in (model, stock):
        step(each, 1)
        with each.no_sync():
            step(each, 2)
        step(each, 3)
    assert near([g / WORLD_SIZE for g in grads(model)], grads(stock))


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.always = nn.Linear(4, 4)
        self.sometimes = nn.Linear(4, 4)
        self.never = nn.Linear(4, 4)

    def forward(self, x: Tensor, both: bool) -> Tensor:
        x = self.always(x)
        return self.sometimes(x) if both else x


def check_unused_parameters_as_torch_does() -> None:
    ours = [
        OurDDP(network(Branches), find_unused_parameters=True, bucket_bytes=b) for b in (0, 1 << 20)
    ]
    stock = StockDDP(network(Branches), find_unused_parameters=True)
    for users in ([0], [], [WORLD_SIZE - 1], range(WORLD_SIZE)):
        for model in [*ours, stock]:
            model.zero_grad()
            model(torch.full((2, 4), RANK + 1.0), RANK in users).sum().backward()
        assert all(same(model, stock) for model in ours), users
        assert all(model.module.never.weight.grad is None for model in ours)


def check_an_unused_parameter_is_named_and_no_rank_hangs() -> None:
    module = network(Branches)
    module.never.requires_grad_(False)
    model = OurDDP(module)

    def unbalanced() -> None:
        model(torch.ones(2, 4), RANK == 0).sum().backward()

    if RANK == 0:
        unbalanced()
    else:
        message = raises(allreduce.UsageError, unbalanced)
        assert "sometimes.weight, sometimes.bias" in message
        assert "always" not in message
    model.zero_grad()
    model(torch.ones(2, 4), True).sum().backward()
    assert alike(model.module.sometimes.weight.grad)


def check_reduction_begins_during_backprop() -> None:
    comm = allreduce.torch.communicator()
    module = nn.Sequential(*[nn.Linear(300, 300) for _ in range(4)])
    model = OurDDP(module, bucket_bytes=200_000)
    moved = []

    def look(_: Tensor) -> None:
        deadline = time.monotonic() + 20
        before = moved[0]
        while sum(comm.traffic().values()) == before and time.monotonic() < deadline:
            time.sleep(0.001)
        moved.append(sum(comm.traffic().values()))

    module[0].weight.register_hook(look)
    for _ in range(2):
        moved[:] = [sum(comm.traffic().values())]
        model(torch.ones(1, 300)).sum().backward()
        assert moved[1] > moved[0]


if __name__ == "__main__":
    main(dict(globals()))
