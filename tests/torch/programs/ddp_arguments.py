"""torch's arguments and methods on DistributedDataParallel, beside torch's own on the backend."""

import dataclasses
import inspect
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from harness import RANK, WORLD_SIZE, main, raises
from models import alike, batches, grads, near, network, same, step
from replicas import Plain
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel as StockDDP
from torch.utils.checkpoint import checkpoint

import allreduce
from allreduce.torch import DistributedDataParallel as OurDDP

MIB = 1 << 20


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach() for p in model.parameters()]


def check_every_argument_of_torchs_is_known() -> None:
    known = inspect.signature(StockDDP).parameters
    for name in known:
        if name in ("module", "device_ids", "output_device"):
            continue
        value = known[name].default
        OurDDP(nn.Linear(2, 2), **{name: value})  # what asks for nothing
    raises(TypeError, lambda: OurDDP(nn.Linear(2, 2), speed=11))


def check_arguments_that_mean_nothing_here() -> None:
    for name, value in (
        ("dim", 1),
        ("check_reduction", True),
        ("delay_all_reduce_named_params", []),
        ("mixed_precision", object()),
        ("skip_all_reduce_unused_params", True),
        ("bucket_cap_mb_list", [1]),
        ("batched_grad_copy", True),
    ):
        words = raises(allreduce.UsageError, lambda n=name, v=value: OurDDP(nn.ReLU(), **{n: v}))
        assert words.startswith(f"{name}="), words


def check_an_argument_with_two_names() -> None:
    model = OurDDP(network(), bucket_cap_mb=0.5)
    assert model.statistics()["bucket_bytes"] == MIB // 2 or WORLD_SIZE == 1
    for both in (
        {"bucket_cap_mb": 1, "bucket_bytes": 5},
        {"init_sync": True, "broadcast_parameters": True},
        {"broadcast_buffers": True, "forward_sync_buffers": True},
    ):
        words = raises(allreduce.UsageError, lambda b=both: OurDDP(network(), **b))
        assert all(name in words for name in both), words
    module = nn.Linear(1, 1)
    nn.init.constant_(module.weight, RANK)
    OurDDP(module, init_sync=False)
    assert module.weight.item() == RANK


def check_devices() -> None:
    OurDDP(network(), None, None)
    OurDDP(network(), device_ids=[])
    for given in ({"device_ids": ["cuda:0"]}, {"output_device": "cuda:0"}):
        words = raises(allreduce.UsageError, lambda g=given: OurDDP(network(), **g))
        assert "the module is on cpu" in words, words
    words = raises(allreduce.UsageError, lambda: OurDDP(network(), device_ids=[0, 1]))
    assert "one device" in words


def check_a_device_mesh_names_the_group() -> None:
    mesh = dist.init_device_mesh("cpu", (WORLD_SIZE,))
    model = OurDDP(network(), device_mesh=mesh)
    step(model)
    assert all(alike(g) for g in grads(model))


def check_buffers_of_rank_0_before_each_pass() -> None:
    def normed() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))

    ours, stock = OurDDP(normed(), broadcast_buffers=True), StockDDP(normed())
    generator = torch.Generator().manual_seed(RANK)
    for number in range(5):
        x = torch.randn(6, 4, generator=generator)
        for model in (ours, stock):
            model.train(number != 3)
            if number == 1:
                with model.no_sync():
                    model(x).sum().backward()
            else:
                model(x).sum().backward()
        assert torch.equal(ours.module[1].running_mean, stock.module[1].running_mean), number
    for model in (ours, stock):
        with torch.no_grad():
            model(x)
    assert torch.equal(ours.module[1].running_mean, stock.module[1].running_mean)


def check_gradients_may_be_tensors_of_their_own() -> None:
    ours = OurDDP(network(), gradient_as_bucket_view=False)
    stock = StockDDP(network())
    kept = []
    for seed in range(3):
        for model in (ours, stock):
            model.zero_grad()
            step(model, seed)
        assert same(ours, stock)
        kept.append([p.grad for p in ours.parameters()])
    values = [g.clone() for g in kept[0]]
    step(ours, 9)
    assert all(torch.equal(x, y) for x, y in zip(kept[0], values, strict=True))
    places = {p.grad.untyped_storage().data_ptr() for p in ours.parameters()}
    assert len(places) == len(list(ours.parameters()))


def check_require_backward_grad_sync_is_an_attribute() -> None:
    model, stock = OurDDP(network()), StockDDP(network())
    for each in (model, stock):
        each.require_backward_grad_sync = False
        step(each, 1)
        each.require_backward_grad_sync = True
        step(each, 2)
    assert same(model, stock)


class Tied(nn.Module):
    """The same weights in two reentrant checkpoints: two gradients in one pass."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = checkpoint(lambda y: torch.tanh(self.inner(y)), x, use_reentrant=True)
        return self.head(x)


def check_static_graphs_may_have_several_gradients_or_none() -> None:
    ours = OurDDP(network(Tied), static_graph=True, bucket_bytes=0)
    for seed in range(4):
        x = torch.randn(3, 4, generator=torch.Generator().manual_seed(9 * seed + RANK))
        x.requires_grad_()
        alone = network(Tied)
        alone(x).square().sum().backward()
        ours.zero_grad()
        ours(x).square().sum().backward()
        for p, q in zip(alone.parameters(), ours.parameters(), strict=True):
            if p.grad is None:
                assert q.grad is None
                continue
            dist.all_reduce(p.grad)
            assert torch.allclose(p.grad / WORLD_SIZE, q.grad, atol=1e-6), seed


def check_several_gradients_of_a_graph_that_is_not_static() -> None:
    model = OurDDP(network(Tied), find_unused_parameters=True)
    x = torch.ones(3, 4, requires_grad=True)
    words = raises(allreduce.UsageError, lambda: model(x).sum().backward())
    assert "twice" in words, words
    assert "static_graph=True" in words


def check_hooks_that_leave_the_gradient_whole() -> None:
    for more in ({}, {"bucket_bytes": 100_000}, {"gradient_as_bucket_view": False}):
        ours, stock = OurDDP(network(), **more), StockDDP(network())
        ours.register_comm_hook(None, default_hooks.allreduce_hook)
        for seed in range(3):
            for model in (ours, stock):
                step(model, seed)  # .grad stays: it is added to
            assert near(grads(ours), grads(stock)), more


def check_compressing_hooks() -> None:
    stock = StockDDP(network())
    step(stock)
    ours = OurDDP(network())
    ours.register_comm_hook(dist.group.WORLD, default_hooks.fp16_compress_hook)
    for _ in range(3):
        ours.zero_grad()
        step(ours)
        assert near(grads(ours), grads(stock), 2e-3)
        assert not near(grads(ours), grads(stock), 1e-7)
        assert all(alike(g) for g in grads(ours))
    model = OurDDP(network(Plain))
    state = powerSGD_hook.PowerSGDState(
        process_group=None, matrix_approximation_rank=2, start_powerSGD_iter=2
    )
    model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    for seed in range(4):
        model.zero_grad()
        step(model, seed)
        assert all(alike(g) for g in grads(model))


def check_what_a_hook_is_given() -> None:
    seen: list[Any] = []

    def hook(state: list[Any], bucket: Any) -> torch.futures.Future[Tensor]:
        places = bucket.gradients()
        pairs = zip(places, bucket.parameters(), strict=True)
        assert all(g.shape == p.shape for g, p in pairs)
        assert bucket.buffer().numel() >= sum(g.numel() for g in places)
        state.append((bucket.index(), bucket.is_last()))
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer() * 0 + RANK)  # another tensor
        return future

    model = OurDDP(network(), bucket_bytes=0)
    model.register_comm_hook(seen, hook)
    step(model)
    count = len(list(model.parameters()))
    assert seen == [(i, i == count - 1) for i in range(count)]
    assert all((g == RANK).all() for g in grads(model))
    assert "one hook" in raises(allreduce.UsageError, lambda: model.register_comm_hook(None, hook))
    summing = OurDDP(network(), op="sum")
    raises(allreduce.UsageError, lambda: summing.register_comm_hook(None, hook))
    raises(TypeError, lambda: summing.register_comm_hook(None, 3))


def check_complex_parameters() -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Parameter(torch.randn(3, 2, dtype=torch.complex64))
            self.second = nn.Parameter(torch.randn(2, dtype=torch.complex128))
            self.third = nn.Parameter(torch.randn(2))

        def forward(self, x: Tensor) -> Tensor:
            y = x.to(torch.complex64) @ self.first
            return (y.to(torch.complex128) * self.second).abs().sum() + self.third.sum()

    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(RANK))
    alone = network(Complex)
    alone(x).backward()
    for more in ({}, {"gradient_as_bucket_view": False}, {"op": "sum"}):
        model = OurDDP(network(Complex), **more)
        for _ in range(2):
            model.zero_grad()
            model(x).backward()
        for p, q in zip(alone.parameters(), model.parameters(), strict=True):
            expected = p.grad.clone()
            dist.all_reduce(expected)
            expected = expected / (1 if more.get("op") == "sum" else WORLD_SIZE)
            assert torch.allclose(q.grad, expected.to(q.dtype), atol=1e-5), more


def minibatch(model: nn.Module, seed: int) -> None:
    x, target = batches(seed)[RANK]
    F.cross_entropy(model(x), target).backward()


def check_join_lets_ranks_have_unlike_numbers_of_minibatches() -> None:
    gloo = dist.new_group(backend="gloo")
    for whole in (True, False):
        for more in ({}, {"find_unused_parameters": True}, {"bucket_bytes": "auto"}):
            model, stock = OurDDP(network(), **more), StockDDP(network(), process_group=gloo)
            for each in (model, stock):
                optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
                with each.join(divide_by_initial_world_size=whole):
                    for seed in range(2 * RANK + 1):
                        optimizer.zero_grad()
                        minibatch(each, seed)
                        optimizer.step()
            assert all(alike(p) for p in model.parameters())
            assert near(weights(model), weights(stock), 1e-5), (whole, more)
            optimizer.zero_grad()
            minibatch(model, 0)  # and goes on without it
            assert all(alike(g) for g in grads(model))


def check_join_with_no_sync_and_buffers() -> None:
    def normed() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))

    models = [OurDDP(normed(), broadcast_buffers=True), StockDDP(normed())]
    for model in models:
        generator = torch.Generator().manual_seed(RANK)
        with model.join():
            for number in range(3 + WORLD_SIZE - RANK):
                x = torch.randn(6, 4, generator=generator)
                model.require_backward_grad_sync = number % 2 == 1
                model(x).square().sum().backward()
    found = [[p.clone() for p in [*m.parameters(), *m.buffers()]] for m in models]
    assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(*found, strict=True))


def check_join_can_stop_at_the_first_end_of_input() -> None:
    model = OurDDP(network())

    def epoch() -> None:
        with model.join(throw_on_early_termination=True):
            for seed in range(1 if RANK == 0 else 3):
                step(model, seed)

    raises(RuntimeError, epoch)


def check_join_of_two_wrappers() -> None:
    models = [OurDDP(network()), OurDDP(nn.Linear(7, 2))]
    optimizer = torch.optim.SGD([p for m in models for p in m.parameters()], lr=0.1)
    with Join(models):
        for seed in range(RANK + 1):
            optimizer.zero_grad()
            x = batches(seed)[RANK][0]
            models[0](x).sum().backward()
            models[1](x[:, 0, 0, :7]).sum().backward()
            optimizer.step()
    assert all(alike(p) for model in models for p in model.parameters())


def check_join_of_sums_is_refused() -> None:
    model = OurDDP(nn.Linear(2, 2), op="sum")
    assert "op=" in raises(allreduce.UsageError, model.join)


def check_options_are_all_compared() -> None:
    names = {field.name for field in dataclasses.fields(OurDDP(nn.Linear(2, 2))._options)}
    assert {"bucket_bytes", "as_views", "static_graph", "sync_buffers"} <= names
    mixed = RANK == 0
    call = lambda: OurDDP(nn.Linear(2, 2), gradient_as_bucket_view=mixed)  # noqa: E731
    raises(allreduce.MismatchError, call)


if __name__ == "__main__":
    main(dict(globals()))
