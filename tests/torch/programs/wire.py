"""DistributedDataParallel(wire_dtype=...): against float64, and as float32 where it must be."""

import torch
import torch.distributed as dist
from harness import RANK, WORLD_SIZE, main, raises
from models import alike, grads, network, step
from torch import Tensor, nn

import allreduce
from allreduce.torch import DistributedDataParallel as OurDDP
from allreduce.torch.ddp import bucket_size

ROUNDOFF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
LEAST = {torch.bfloat16: 2.0**-133, torch.float16: 2.0**-24}  # the steps of subnormal numbers


def summed(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """The sum over the ranks in float64, and that of absolute values."""
    both = torch.stack([tensor.double(), tensor.double().abs()])
    dist.all_reduce(both)
    return both[0], both[1]


def assert_within(
    found: list[Tensor], mine: list[Tensor], dtype: torch.dtype, share: float = 1 / WORLD_SIZE
) -> None:
    """`found` is share times the sum of all ranks' `mine`, but for roundings on the wire.

    One rounding when packed, one for each of at most WORLD_SIZE - 1 additions, and float32's own.
    """
    factor = (1 + ROUNDOFF[dtype]) ** WORLD_SIZE * (1 + 2.0**-22) - 1
    for got, own in zip(found, mine, strict=True):
        total, absolute = summed(own)
        bound = share * absolute * factor + WORLD_SIZE * LEAST[dtype]
        error = (got.double() - share * total).abs()
        assert bool((error <= bound).all()), (dtype, (error / bound).max())
        assert alike(got)


def local(*seeds: int) -> list[Tensor]:
    """This rank's own gradients, added up over minibatches."""
    model = network()
    for seed in seeds:
        step(model, seed)
    return grads(model)


def check_the_error_is_within_the_bound_of_the_roundings() -> None:
    for dtype in ROUNDOFF:
        for bucket_bytes in (0, 100_000, 4 << 20):
            for op, share in (("mean", 1 / WORLD_SIZE), ("sum", 1.0)):
                model = OurDDP(network(), bucket_bytes=bucket_bytes, wire_dtype=dtype, op=op)
                for seed in range(3):  # the buckets are cut anew after the first
                    model.zero_grad()
                    step(model, seed)
                    assert_within(grads(model), local(seed), dtype, share)


def check_what_is_reduced_has_the_dtype_of_the_wire() -> None:
    model = OurDDP(network(), wire_dtype=torch.bfloat16)
    step(model)
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())
    assert all(torch.equal(g, g.bfloat16().float()) for g in grads(model))
    assert not all(torch.equal(g, g.bfloat16().float()) for g in local(0))


def check_half_as_many_bytes_travel() -> None:
    counted, traffic = [], []
    comm = allreduce.torch.communicator()
    for dtype in (None, torch.bfloat16):
        model = OurDDP(network(), wire_dtype=dtype)
        step(model)
        before = sum(comm.traffic().values())
        step(model)
        dist.barrier()
        traffic.append(sum(comm.traffic().values()) - before)
        counted.append(model.statistics()["bytes_reduced"])
    assert 0.49 < counted[1] / counted[0] < 0.51, counted
    assert 0.45 < traffic[1] / traffic[0] < 0.55, traffic


def check_no_sync_adds_up_in_float32() -> None:
    for op, share in (("mean", 1 / WORLD_SIZE), ("sum", 1.0)):
        model = OurDDP(network(), wire_dtype=torch.bfloat16, bucket_bytes=100_000, op=op)
        for _ in range(3):
            model.zero_grad()
            with model.no_sync():
                step(model, 1)
                step(model, 2)
            assert not alike(model.module.head.weight.grad)
            step(model, 3)
            assert_within(grads(model), local(1, 2, 3), torch.bfloat16, share)


def check_reduced_gradients_can_be_added_to() -> None:
    for op, share in (("mean", 1 / WORLD_SIZE), ("sum", 1.0)):
        model = OurDDP(network(), wire_dtype=torch.bfloat16, bucket_bytes=100_000, op=op)
        for seed in range(3):
            before = grads(model) if seed else [torch.zeros_like(p) for p in model.parameters()]
            step(model, seed)
            mine = local(seed)
            # What was reduced is the same on all ranks: each has its share of it.
            part = 1.0 if op == "mean" else 1 / WORLD_SIZE
            mine = [part * old + g for old, g in zip(before, mine, strict=True)]
            assert_within(grads(model), mine, torch.bfloat16, share)


def check_zeroed_gradients_stay_where_they_are() -> None:
    model = OurDDP(network(), wire_dtype=torch.bfloat16, op="sum")
    step(model, 0)
    places = [p.grad.data_ptr() for p in model.parameters()]
    model.zero_grad(set_to_none=False)
    step(model, 1)
    assert [p.grad.data_ptr() for p in model.parameters()] == places
    assert_within(grads(model), local(1), torch.bfloat16, 1.0)


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
    model = OurDDP(network(Branches), wire_dtype=torch.bfloat16, find_unused_parameters=True)
    for users in ([0], [], [WORLD_SIZE - 1], range(WORLD_SIZE)):
        model.zero_grad()
        own = network(Branches)
        for each in (model, own):
            each(torch.full((2, 4), RANK + 1.0), RANK in users).sum().backward()
        some = [p.grad for p in model.module.sometimes.parameters()]
        assert all((g is None) == (not users) for g in some), users
        assert all(p.grad is None for p in model.module.never.parameters())
        found, mine = [], []
        for p, q in zip(model.parameters(), own.parameters(), strict=True):
            if p.grad is not None:
                found.append(p.grad)
                mine.append(torch.zeros_like(q) if q.grad is None else q.grad)
        assert_within(found, mine, torch.bfloat16)


def check_other_dtypes_travel_as_they_are() -> None:
    def mixed() -> nn.Module:
        return nn.ModuleList([nn.Linear(5, 3).double(), nn.Linear(3, 3), nn.Linear(3, 3).half()])

    models = [OurDDP(network(mixed), wire_dtype=dtype) for dtype in (torch.bfloat16, None)]
    for model in models:
        first, second, third = model.module
        x = first(torch.full((2, 5), RANK + 0.1, dtype=torch.float64))
        x = third(second(x.float()).half())
        model.forward = None  # the layers are called by themselves
        x.float().square().sum().backward()
    for index, (p, q) in enumerate(zip(*[m.parameters() for m in models], strict=True)):
        assert torch.equal(p.grad, q.grad) == (index // 2 != 1), index


def check_automatic_buckets() -> None:
    real, bucket_size.choose = bucket_size.choose, lambda *_, **__: 150_000
    model = OurDDP(network(), wire_dtype=torch.bfloat16, bucket_bytes="auto")
    for seed in range(5):
        model.zero_grad()
        step(model, seed)
        assert_within(grads(model), local(seed), torch.bfloat16)
    bucket_size.choose = real
    assert model.statistics()["buckets"] > 2


def check_what_it_cannot_be_is_refused() -> None:
    for wrong in (torch.float32, torch.float64, torch.int8, "bfloat16"):
        words = raises(
            allreduce.UsageError, lambda wrong=wrong: OurDDP(network(), wire_dtype=wrong)
        )
        assert f"wire_dtype={wrong!r}" in words, words
    differs = torch.bfloat16 if RANK == 0 else None
    words = raises(allreduce.MismatchError, lambda: OurDDP(network(), wire_dtype=differs))
    assert RANK == 0 or "wire_dtype=" in words, words


if __name__ == "__main__":
    main(dict(globals()))
