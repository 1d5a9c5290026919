"""Data-parallel training on a device whose streams may lag: the CPU's bits, and overlap."""

from collections.abc import Callable
from typing import Any

import cpu_device
import torch
import torch.distributed as dist
from harness import RANK, WORLD_SIZE, main, raises
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as StockDDP

from allreduce.errors import UsageError
from allreduce.torch import DistributedDataParallel as OurDDP
from allreduce.torch import ShardedSGD
from allreduce.torch.ddp import bucket_size

Gate = cpu_device.load().Gate
CPU, DEVICE = torch.device("cpu"), torch.device("privateuseone", 0)

Wrap = Callable[[nn.Module], nn.Module]


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(20, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 4)
    )


def trained(wrap: Wrap, device: torch.device, passes: int = 1) -> list[Tensor]:
    """Weights after five updates by this rank's data."""
    model = wrap(network().to(device))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(RANK)
    for _ in range(5):
        for _ in range(passes):
            x = torch.randn(8, 20, generator=generator).to(device)
            model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().cpu() for p in model.parameters()]


def assert_same_bits(wrap: Wrap, passes: int = 1) -> None:
    expected = trained(wrap, CPU, passes)
    with torch.Stream(device=DEVICE):
        found = trained(wrap, DEVICE, passes)
    for x, y in zip(found, expected, strict=True):
        assert torch.equal(x, y), (x - y).abs().max()


def check_stock_ddp() -> None:
    assert_same_bits(StockDDP)
    assert_same_bits(lambda module: StockDDP(module, bucket_cap_mb=0.1))
    assert_same_bits(lambda module: StockDDP(module, gradient_as_bucket_view=True))


def check_ours() -> None:
    options: list[dict[str, Any]] = [
        {},
        {"bucket_bytes": 100_000},
        {"bucket_bytes": 0, "op": "sum"},
        {"find_unused_parameters": True},
        {"wire_dtype": torch.bfloat16, "bucket_bytes": 100_000},
        {"wire_dtype": torch.bfloat16, "op": "sum", "find_unused_parameters": True},
    ]
    for each in options:
        assert_same_bits(lambda module, each=each: OurDDP(module, **each))
        assert_same_bits(lambda module, each=each: OurDDP(module, **each), passes=2)


def check_gradients_are_views_in_device_memory() -> None:
    model = OurDDP(network().to(DEVICE))
    model(torch.ones(2, 20).to(DEVICE)).sum().backward()
    storages = {p.grad.untyped_storage().data_ptr() for p in model.parameters()}
    assert len(storages) == 1
    assert all(p.grad.device == DEVICE for p in model.parameters())


def check_automatic_buckets() -> None:
    real, bucket_size.choose = bucket_size.choose, lambda *_, **__: 150_000
    for wire_dtype in (None, torch.bfloat16):
        made: list[OurDDP] = []

        def wrap(module: nn.Module, dtype: torch.dtype | None = wire_dtype) -> nn.Module:
            made.append(OurDDP(module, bucket_bytes="auto", wire_dtype=dtype))  # noqa: B023
            return made[-1]  # noqa: B023

        assert_same_bits(wrap)
        assert_same_bits(wrap, passes=2)
        assert [m.statistics()["bucket_bytes"] for m in made] == [150_000] * 4
        assert all(m.statistics()["buckets"] > 1 for m in made)
    bucket_size.choose = real


def check_the_choice_of_the_size_is_one_on_all_ranks() -> None:
    model = OurDDP(network().to(DEVICE), bucket_bytes="auto")
    for _ in range(4):
        model(torch.ones(2, 20).to(DEVICE)).sum().backward()
    size = torch.tensor([model.statistics()["bucket_bytes"]])
    everyone = [torch.empty_like(size) for _ in range(WORLD_SIZE)]
    dist.all_gather(everyone, size)
    assert all(torch.equal(size, each) for each in everyone)
    assert size.item() > 0


class Scales(nn.Module):
    """Its gradients need no operation that waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(40_000))

    def forward(self, _: Tensor) -> Tensor:
        return self.weight


def check_the_host_goes_on_before_the_gradients_are_reduced() -> None:
    assert_the_host_goes_on(None)


def check_the_host_goes_on_before_the_gradients_are_unpacked() -> None:
    assert_the_host_goes_on(torch.bfloat16)


def assert_the_host_goes_on(wire_dtype: torch.dtype | None) -> None:
    model = OurDDP(Scales().to(DEVICE), op="sum", wire_dtype=wire_dtype)
    x = torch.ones(1).to(DEVICE)
    ones = torch.full((40_000,), RANK + 1.0).to(DEVICE)
    for _ in range(2):  # the first pass agrees on the buckets
        model(x).backward(ones)
    stream = torch.Stream(device=DEVICE)
    stream.wait_stream(torch.accelerator.current_stream())
    with stream:
        model.zero_grad()
        output = model(x)
        gate = Gate()
        ones.mul_(2)
        output.backward(ones)
        copy = torch.empty_like(ones)
        copy.copy_(model.module.weight.grad)
        assert not stream.query()
        gate.open()
        assert (copy.cpu() == WORLD_SIZE * (WORLD_SIZE + 1)).all()


def check_reductions_start_before_backward_ends() -> None:
    model = OurDDP(network().to(DEVICE), bucket_bytes=0)
    x = torch.ones(2, 20).to(DEVICE)
    model(x).sum().backward()
    model(x).sum().backward()
    started: list[int] = []
    reducer = model._reducer
    model.module[0].weight.register_hook(
        lambda _: started.append(sum(b.work is not None for b in reducer._buckets))
    )
    model(x).sum().backward()
    assert started[0] >= 3, started


def check_streams_of_forward_and_backward_may_differ() -> None:
    assert_streams_may_differ(None)
    assert_streams_may_differ(torch.bfloat16)


def assert_streams_may_differ(wire_dtype: torch.dtype | None) -> None:
    model = OurDDP(network().to(DEVICE), wire_dtype=wire_dtype)
    one, other = torch.Stream(device=DEVICE), torch.Stream(device=DEVICE)
    one.wait_stream(torch.accelerator.current_stream())
    for _ in range(3):
        model.zero_grad()
        with one:
            loss = model(torch.full((2, 20), RANK + 1.0).to(DEVICE)).square().sum()
        other.wait_stream(one)
        with other:
            loss.backward()
            mine = [p.grad.cpu() for p in model.parameters()]
        one.wait_stream(other)
    for grad in mine:
        everyone = [torch.empty_like(grad) for _ in range(WORLD_SIZE)]
        dist.all_gather(everyone, grad)
        assert all(torch.equal(grad, each) for each in everyone)
        assert grad.isfinite().all()


def sharded(device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    """Weights after five updates of ShardedSGD, and its momentum."""
    module = network().to(device)
    optimizer = ShardedSGD(module.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(RANK)
    for turn in range(5):
        module(torch.randn(8, 20, generator=generator).to(device)).square().mean().backward()
        optimizer.step()
        (module if turn % 2 else optimizer).zero_grad()
        if turn == 2:
            optimizer.load_state_dict(optimizer.state_dict())
    momenta = [each["momentum"].cpu() for each in optimizer.state_dict()["state"].values()]
    return [p.detach().cpu() for p in module.parameters()], momenta


def check_sharded_sgd() -> None:
    expected = sharded(CPU)
    with torch.Stream(device=DEVICE):
        found = sharded(DEVICE)
    for mine, theirs in zip(found, expected, strict=True):
        for x, y in zip(mine, theirs, strict=True):  # the step is another kernel of torch's
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)
            everyone = [torch.empty_like(x) for _ in range(WORLD_SIZE)]
            dist.all_gather(everyone, x)
            assert all(torch.equal(x, each) for each in everyone)


def check_the_host_goes_on_before_the_sharded_step() -> None:
    weight = nn.Parameter(torch.zeros(40_000).to(DEVICE))
    optimizer = ShardedSGD([weight], lr=1.0, momentum=0.0, weight_decay=0.0, op="sum")
    gradient = torch.full((40_000,), RANK + 1.0).to(DEVICE)
    stream = torch.Stream(device=DEVICE)
    stream.wait_stream(torch.accelerator.current_stream())
    with stream:
        for _ in range(2):
            optimizer.zero_grad()
            weight.grad.copy_(gradient)
            gate = Gate()
            gradient.mul_(2)
            weight.grad.add_(gradient)
            optimizer.step()
            assert not stream.query()
            gate.open()
        total = WORLD_SIZE * (WORLD_SIZE + 1) / 2
        assert (weight.detach().cpu() == -total * (3 + 6)).all()


def check_parameters_on_two_devices_are_refused() -> None:
    module = network()
    module[4].to(DEVICE)
    words = raises(UsageError, lambda: OurDDP(module))
    assert "all parameters must be on one device" in words, words


if __name__ == "__main__":
    main(dict(globals()))
