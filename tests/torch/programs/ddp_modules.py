"""DistributedDataParallel around unusual modules, and what it refuses."""

import contextlib
import gc
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from harness import RANK, WORLD_SIZE, main, raises
from models import Network, alike, batches, grads, near, network, same, step
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as StockDDP
from torch.utils.checkpoint import checkpoint

import allreduce
from allreduce.torch import DistributedDataParallel as OurDDP


def check_mixed_dtypes() -> None:
    model = nn.ModuleList(nn.Linear(40, 40) for _ in range(6))
    for layer, dtype in zip(model, [torch.float32, torch.bfloat16, torch.float64] * 2, strict=True):
        layer.to(dtype)
    ours = OurDDP(model, bucket_bytes=7000)
    assert ours.statistics()["buckets"] > 3
    inputs = [torch.full((2, 40), 2.0**RANK, dtype=layer.weight.dtype) for layer in model]
    # The wrapper's own forward was not called: the gradients are reduced all the same.
    sum(layer(x).sum().double() for layer, x in zip(model, inputs, strict=True)).backward()
    total = sum(2 * 2.0**rank for rank in range(WORLD_SIZE)) / WORLD_SIZE
    assert all((layer.weight.grad == total).all() for layer in model)
    assert [p.grad.dtype for p in model.parameters()] == [p.dtype for p in model.parameters()]


def check_buffers_begin_alike_and_stay_local() -> None:
    torch.manual_seed(RANK)
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    module[1].running_mean += RANK
    module[1].num_batches_tracked += RANK
    model = OurDDP(module)
    assert alike(module[1].running_mean)
    assert module[1].num_batches_tracked == 0
    model(torch.randn(8, 4)).sum().backward()
    assert not alike(module[1].running_mean)


def check_broadcast_parameters_can_be_refused() -> None:
    module = nn.Linear(1, 1)
    nn.init.constant_(module.weight, RANK)
    OurDDP(module, broadcast_parameters=False)
    assert module.weight.item() == RANK


def check_frozen_parameters_have_no_gradient() -> None:
    module = network()
    module.wide.requires_grad_(False)
    model = OurDDP(module)
    step(model)
    assert module.wide.weight.grad is None
    assert alike(module.head.weight.grad)


def check_different_modules_are_a_typed_error_on_every_rank() -> None:
    module = nn.Linear(4, 3 if RANK == 1 else 2)
    message = raises(allreduce.MismatchError, lambda: OurDDP(module))
    if RANK == 1:
        assert "weight: float32[3, 4] trained" in message
        assert "weight: float32[2, 4] trained" in message
    assert "rank 1" in message
    deeper = nn.Sequential(nn.Linear(2, 2), *[nn.Linear(2, 2)] * (RANK == 0))
    raises(allreduce.MismatchError, lambda: OurDDP(deeper))
    algo = "ring" if RANK == 0 else "bcube"
    message = raises(allreduce.MismatchError, lambda: OurDDP(nn.Linear(2, 2), algo=algo))
    assert RANK == 0 or "algo='bcube'" in message


def check_refused_arguments() -> None:
    refused = [
        (lambda: OurDDP(nn.Linear(2, 2), op="max"), "op='max'"),
        (lambda: OurDDP(nn.Linear(2, 2), bucket_bytes=-1), "bucket_bytes=-1"),
        (lambda: OurDDP(nn.ReLU()), "none of its parameters"),
        (lambda: OurDDP(nn.Linear(2, 2, device="meta")), "weight is on meta"),
        (lambda: OurDDP(nn.LazyLinear(2)), "has no shape yet"),
    ]
    for call, word in refused:
        message = raises(ValueError, call)
        assert word in message, message
    message = raises(ValueError, lambda: OurDDP(nn.Embedding(5, 3, sparse=True)))
    assert "weight has sparse gradients" in message


class Shuffled(nn.Module):
    """Runs its layers in the reverse of the order of their registration."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(50, 50) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        for layer in reversed(self.layers):
            x = torch.tanh(layer(x))
        return x


def check_buckets_follow_the_order_of_backprop() -> None:
    ours, stock = OurDDP(network(Shuffled), bucket_bytes=12_000), StockDDP(network(Shuffled))
    for seed in range(3):
        torch.manual_seed(seed * WORLD_SIZE + RANK)
        x = torch.randn(4, 50)
        for model in (ours, stock):
            model(x).sum().backward()  # without zero_grad: gradients move to the new buckets
        assert near(grads(ours), grads(stock))
    order = [p.grad.data_ptr() for layer in ours.module.layers for p in [layer.weight]]
    assert order == sorted(order)  # the first layer's gradient comes first


def check_the_order_may_differ_between_ranks() -> None:
    class Either(Shuffled):
        def forward(self, x: Tensor) -> Tensor:
            layers = self.layers if RANK % 2 else reversed(self.layers)
            return sum(torch.tanh(layer(x)) for layer in layers)

    model = OurDDP(network(Either), bucket_bytes=0)
    for _ in range(3):
        model.zero_grad()
        model(torch.ones(2, 50)).sum().backward()
    assert all(alike(p.grad) for p in model.parameters())


def check_checkpointing() -> None:
    class Checkpointed(Network):
        reentrant = True

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.conv(x)).flatten(1).requires_grad_()
            x = checkpoint(lambda y: self.norm(self.wide(y)), x, use_reentrant=self.reentrant)
            x = checkpoint(lambda y: self.square(self.square(y)), x, use_reentrant=self.reentrant)
            return checkpoint(lambda y: self.head(y) * self.scale, x, use_reentrant=self.reentrant)

    for reentrant in (False, True):
        Checkpointed.reentrant = reentrant
        ours, stock = (
            OurDDP(network(Checkpointed), bucket_bytes=100_000),
            StockDDP(network(Checkpointed)),
        )
        for seed in range(2):
            for model in (ours, stock):
                model.zero_grad()
                step(model, seed)
            assert same(ours, stock), reentrant


def check_autograd_grad_leaves_sums_alone() -> None:
    model = OurDDP(network(), op="sum")
    step(model)
    before = grads(model)
    torch.autograd.grad(model(batches(1)[RANK][0]).sum(), [*model.parameters()])
    assert all(torch.equal(x, y) for x, y in zip(grads(model), before, strict=True))


def check_autograd_grad_reduces_nothing() -> None:
    model = OurDDP(network())
    x = batches(0)[RANK][0].requires_grad_()
    before = model.statistics()["bytes_reduced"]
    output = model(x)
    torch.autograd.grad(output.sum(), x, create_graph=True)
    assert model.statistics()["bytes_reduced"] == before
    output.sum().backward()
    assert alike(model.module.head.weight.grad)


@contextlib.contextmanager
def failing(parameter: Tensor) -> Iterator[None]:
    def fail(_: Tensor) -> None:
        raise KeyError("on purpose")

    handle = parameter.register_hook(fail)
    try:
        yield
    finally:
        handle.remove()


def check_a_failed_backward_pass_can_be_repeated() -> None:
    model, stock = OurDDP(network(), bucket_bytes=0), StockDDP(network())
    with failing(model.module.wide.weight):
        raises(KeyError, lambda: step(model))
    for each in (model, stock):
        each.zero_grad()
        step(each)
    assert same(model, stock)


def check_evaluation_needs_no_other_rank() -> None:
    model = OurDDP(network())
    if RANK == 0:
        with torch.no_grad():
            model(batches(0)[0][0])


def check_the_module_outlives_its_wrapper() -> None:
    module = network()
    model = OurDDP(module)
    step(model)
    assert next(iter(model.state_dict())).startswith("module.")
    del model
    gc.collect()
    module.zero_grad()
    step(module)
    assert not alike(module.head.weight.grad)


if __name__ == "__main__":
    main(dict(globals()))
