"""Tensors whose memory is not as usual: unaligned, views of other elements, or none at all."""

import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from harness import RANK, WORLD_SIZE, main, raises
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

import allreduce

COUNT = 5003  # more than the 16 KiB from which on kernels align their stores
SUM = WORLD_SIZE * (WORLD_SIZE + 1) // 2
KINDS = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
LAST = WORLD_SIZE - 1


def unaligned(value: float, dtype: torch.dtype, offset: int, count: int) -> Tensor:
    """A tensor of one value, `offset` bytes behind a multiple of 64."""
    raw = torch.zeros(count * dtype.itemsize + 128, dtype=torch.uint8)
    begin = -raw.data_ptr() % 64 + offset
    tensor = torch.frombuffer(raw.numpy(), dtype=dtype, count=count, offset=begin)
    assert tensor.data_ptr() % 64 == offset
    return tensor.fill_(value)


def is_all(tensor: Tensor, value: float) -> bool:
    return torch.equal(tensor, torch.full_like(tensor, value))


def everywhere(
    check: Callable[[Callable[..., Tensor], torch.dtype, float], None], count: int = COUNT
) -> None:
    """At every offset, in every dtype; with what the sum of 1, 2, ... is in it."""
    for dtype in KINDS:
        for offset in range(1, 8):
            total = 1 if dtype == torch.bool else SUM

            def make(value: float, parts: int = 1, offset: int = offset, dtype=dtype) -> Tensor:
                return unaligned(value, dtype, offset, count * parts)

            check(make, dtype, total)


def check_unaligned_sums() -> None:
    def check(make: Callable[..., Tensor], dtype: torch.dtype, total: float) -> None:
        x = make(RANK + 1)
        dist.all_reduce(x)
        assert is_all(x, total), (dtype, x)
        x = make(RANK + 1)
        dist.all_reduce(x, async_op=True).wait()
        assert is_all(x, total), (dtype, x)
        x = make(RANK + 1)
        dist.reduce(x, LAST)
        assert is_all(x, total if RANK == LAST else RANK + 1), (dtype, x)
        both = [make(RANK + 1), make(RANK + 1)]
        dist.all_reduce_coalesced(both)
        assert all(is_all(x, total) for x in both), dtype

    everywhere(check)


def check_unaligned_parts_of_sums() -> None:
    def check(make: Callable[..., Tensor], dtype: torch.dtype, total: float) -> None:
        out = make(0)
        dist.reduce_scatter_tensor(out, make(RANK + 1, WORLD_SIZE))
        assert is_all(out, total), (dtype, out)
        out = make(0)
        dist.reduce_scatter(out, [make(RANK + 1) for _ in range(WORLD_SIZE)])
        assert is_all(out, total), (dtype, out)

    everywhere(check)


def check_unaligned_moves() -> None:
    ranks = range(WORLD_SIZE)

    def check(make: Callable[..., Tensor], dtype: torch.dtype, _total: float) -> None:
        dist.broadcast(x := make(RANK), LAST)
        assert is_all(x, LAST), dtype
        dist.all_gather_into_tensor(out := make(0, WORLD_SIZE), make(RANK))
        assert all(is_all(part, r) for r, part in enumerate(out.chunk(WORLD_SIZE))), dtype
        dist.all_gather(outs := [make(0) for _ in ranks], make(RANK))
        assert all(is_all(part, r) for r, part in enumerate(outs)), dtype
        dist.gather(make(RANK), outs := [make(0) for _ in ranks] if RANK == 0 else None)
        assert all(is_all(part, r) for r, part in enumerate(outs or [])), dtype
        dist.scatter(out := make(0), [make(r) for r in ranks] if RANK == 0 else None)
        assert is_all(out, RANK), dtype
        dist.all_to_all_single(out := make(0, WORLD_SIZE), make(RANK, WORLD_SIZE))
        assert all(is_all(part, r) for r, part in enumerate(out.chunk(WORLD_SIZE))), dtype
        dist.all_to_all(outs := [make(0) for _ in ranks], [make(RANK) for _ in ranks])
        assert all(is_all(part, r) for r, part in enumerate(outs)), dtype
        work = dist.isend(make(RANK), (RANK + 1) % WORLD_SIZE)
        dist.recv(x := make(0), (RANK - 1) % WORLD_SIZE)
        work.wait()
        assert is_all(x, (RANK - 1) % WORLD_SIZE), dtype

    everywhere(check, 301)


def check_views_of_other_elements() -> None:
    """What a conjugate or negative view stands for is reduced, not what lies in memory."""
    z = torch.full((5,), complex(RANK + 1, RANK + 1))
    view = z.conj()
    # torch.distributed refuses these, or hands a copy of them to any backend.
    backend = dist.group.WORLD._get_backend(torch.device("cpu"))
    backend.allreduce([view]).wait()
    assert (view == complex(SUM, -SUM)).all(), view
    assert (z == complex(SUM, SUM)).all(), z
    x = torch.full((5,), RANK + 1.0)
    for view in (torch._neg_view(x), torch.full((5,), complex(0, RANK + 1)).conj().imag):
        assert view.is_neg()
        backend.allreduce([view]).wait()
        assert is_all(view, -SUM), view
    assert is_all(x, SUM), x
    found = torch.empty(5 * WORLD_SIZE)
    dist.all_gather_into_tensor(found, torch._neg_view(torch.full((5,), RANK + 1.0)))
    assert all(is_all(part, -r - 1) for r, part in enumerate(found.chunk(WORLD_SIZE))), found


def under(transform: Callable[..., Callable[..., object]]) -> Tensor:
    """What a function sees under a transformation of torch.func."""
    seen = []
    transform(lambda x: (seen.append(x), x.sum())[1])(torch.ones(2, 2))
    return seen[0]


def check_tensors_without_memory_are_refused() -> None:
    freed = torch.ones(2)
    freed.untyped_storage().resize_(0)
    cases = [
        (FakeTensorMode().from_tensor(torch.ones(2)), "no memory"),
        (torch._efficientzerotensor(2), "no memory"),
        (freed, "no memory"),
        (TwoTensor(torch.ones(2), torch.ones(2)), "no memory"),
        (under(torch.func.vmap), "no memory of its own"),
        (under(torch.func.grad), "no memory of its own"),
        (torch.ones(2, device="meta"), "meta"),
        (torch.eye(2).to_sparse_csr(), "sparse"),
        (torch.eye(2).to_mkldnn(), "MKL-DNN"),
        (torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]), "nested"),
        (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), r"int_repr()"),
    ]
    backend = dist.group.WORLD._get_backend(torch.device("cpu"))
    for tensor, words in cases:
        for call in (
            lambda x: backend.allreduce([x]).wait(),
            lambda x: backend.broadcast([x], dist.BroadcastOptions()).wait(),
            lambda x: backend.reduce([x], dist.ReduceOptions()).wait(),
            lambda x: backend.send([x], (RANK + 1) % WORLD_SIZE, 0).wait(),
            lambda x: backend.recv([x], (RANK - 1) % WORLD_SIZE, 0).wait(),
        ):
            text = raises(allreduce.UsageError, lambda call=call, tensor=tensor: call(tensor))
            assert words in text, (type(tensor), text)
    dist.all_reduce(x := torch.ones(1))  # the group is as it was
    assert x.item() == WORLD_SIZE


def check_tensors_of_other_kinds_change_in_place() -> None:
    with torch.inference_mode():
        inference = torch.ones(3)
    kinds = [torch.nn.Parameter(torch.ones(3)), torch.ones(3).as_subclass(Named), inference]
    for x in kinds:
        with torch.no_grad():
            dist.all_reduce(x)
        assert is_all(x.detach(), WORLD_SIZE), type(x)


class Named(torch.Tensor):
    pass


def check_flushed_subnormal_numbers_are_kept() -> None:
    """The worker was born before; with it and without it, each rank gets the same bits."""
    x = torch.rand(1000, generator=torch.Generator().manual_seed(RANK)) * 2.0**-127
    places = x.to_sparse().indices()
    dist.all_reduce(torch.ones(1), async_op=True).wait()

    def in_background(y: Tensor) -> None:
        work = dist.all_reduce(y, async_op=True)
        time.sleep(0.01)
        work.wait()

    calls = {
        "blocking": dist.all_reduce,
        "asynchronous": lambda y: dist.all_reduce(y, async_op=True).wait(),
        "in the background": in_background,
    }

    def found() -> list[Tensor]:
        results = []
        for call in calls.values():
            call(y := x.clone())
            results.append(y.view(torch.int32))
        sparse = torch.sparse_coo_tensor(places, x[places[0]], x.shape, is_coalesced=True)
        dist.all_reduce(sparse)
        return [*results, sparse.values().view(torch.int32)]

    wanted = found()
    assert torch.set_flush_denormal(RANK % 2 == 1)
    try:
        for _ in range(5):
            for mine, whole, name in zip(found(), wanted, (*calls, "sparse"), strict=True):
                assert torch.equal(mine, whole), name
    finally:
        torch.set_flush_denormal(False)
    both = [torch.empty_like(wanted[0]) for _ in range(WORLD_SIZE)]
    dist.all_gather(both, wanted[0])
    assert all(torch.equal(one, both[0]) for one in both)


def check_another_shape_is_a_mismatch() -> None:
    for call in (
        lambda x, group: dist.broadcast(x, 0, group),
        lambda x, group: dist.all_reduce(x, group=group),
        lambda x, group: dist.reduce(x, 0, group=group),
    ):
        group = dist.new_group()
        dist.barrier()

        def both(call=call, group=group) -> None:
            call(torch.ones((2, 3) if RANK == 0 else (3, 2)), group)
            dist.barrier(group)

        assert "shapes" in raises(allreduce.MismatchError, both)


def check_parts_of_a_whole_may_have_other_shapes() -> None:
    out = torch.zeros(WORLD_SIZE, 2, 3)
    dist.all_gather_into_tensor(out, torch.full((2, 3) if RANK else (6,), RANK + 1.0))
    assert all(is_all(part, r + 1) for r, part in enumerate(out))
    dist.reduce_scatter_tensor(part := torch.zeros(6), out.view(-1) if RANK else out)
    assert is_all(part, WORLD_SIZE * (RANK + 1))


if __name__ == "__main__":
    main(dict(globals()))
