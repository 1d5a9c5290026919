"""Collectives on a device whose streams may lag: the CPU's results, in stream order."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import cpu_device
import torch
import torch.distributed as dist
from harness import RANK, WORLD_SIZE, main, raises
from torch import Tensor

from allreduce.errors import UsageError

MODULE = cpu_device.load()
Gate = MODULE.Gate
CPU, DEVICE = torch.device("cpu"), torch.device("privateuseone", 0)
OPS = dist.ReduceOp
TOTAL = WORLD_SIZE * (WORLD_SIZE + 1) // 2
LARGE = 2_500_003  # floats: several pieces


@contextmanager
def lagging() -> Iterator[tuple[torch.Stream, Gate]]:
    """A current stream that does nothing until its gate is opened, and is empty at the end."""
    stream = torch.Stream(device=DEVICE)
    with stream:
        gate = Gate()
        try:
            yield stream, gate
        finally:
            gate.open()
            stream.synchronize()


def draw(count: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Values of this rank; whole numbers of any dtype."""
    generator = torch.Generator().manual_seed(1000 * seed + RANK)
    return torch.randint(1, 9, (count,), generator=generator).to(dtype)


def assert_alike(collective: Callable[[torch.device], list[Tensor]]) -> None:
    """Runs a collective on both devices, on this one behind a stream that lags."""
    expected = collective(CPU)
    with lagging() as (_, gate):
        found = collective(DEVICE)
        copies = [torch.empty_like(x) for x in found]
        for copy, x in zip(copies, found, strict=True):
            copy.copy_(x)
        gate.open()
        found = [x.cpu() for x in copies]
    for x, y in zip(found, expected, strict=True):
        assert torch.equal(x, y), (x, y)


def check_memory_is_kept_for_the_streams_that_use_it() -> None:
    def users(x: Tensor) -> int:
        return MODULE.users(x.untyped_storage().data_ptr())

    x, all_ = draw(10).to(DEVICE), torch.empty(10 * WORLD_SIZE, device=DEVICE)
    assert users(x) == users(all_) == 0
    works = [dist.all_gather_into_tensor(all_, x, async_op=True)]
    assert users(x) == users(all_) == 2, "the streams into the host and out of it"
    strided = torch.zeros(2 * LARGE, device=DEVICE)[::2]  # goes through a copy
    works.append(dist.all_reduce(strided, async_op=True))
    assert users(strided) == 2
    for work in works:
        work.wait()


def check_all_reduce_of_every_dtype_and_operation() -> None:
    cases = [
        (torch.float32, (OPS.SUM, OPS.AVG, OPS.MIN, OPS.MAX, OPS.PRODUCT)),
        (torch.float64, (OPS.SUM, OPS.AVG)),
        (torch.bfloat16, (OPS.SUM, OPS.AVG)),
        (torch.float16, (OPS.SUM,)),
        (torch.int64, (OPS.SUM, OPS.AVG, OPS.BAND, OPS.BOR, OPS.BXOR)),
        (torch.int16, (OPS.SUM,)),
        (torch.uint8, (OPS.MAX,)),
        (torch.bool, (OPS.BOR,)),
        (torch.complex64, (OPS.SUM, OPS.AVG)),
    ]
    for dtype, ops in cases:
        for op in ops:

            def run(device: torch.device, dtype: torch.dtype = dtype, op: OPS = op) -> list[Tensor]:
                x = draw(1003, dtype).to(device)
                dist.all_reduce(x, op)
                return [x]

            assert_alike(run)


def check_sizes() -> None:
    for count in (0, 1, 5, LARGE):

        def run(device: torch.device, count: int = count) -> list[Tensor]:
            x = draw(count).to(device)
            dist.all_reduce(x)
            return [x]

        assert_alike(run)


def check_premultiplied() -> None:
    def run(device: torch.device) -> list[Tensor]:
        x = draw(1003).to(device)
        dist.all_reduce(x, dist._make_nccl_premul_sum(0.5))
        return [x]

    assert_alike(run)


def check_a_tensor_that_is_not_contiguous() -> None:
    def run(device: torch.device) -> list[Tensor]:
        x = draw(600).view(20, 30).to(device)
        dist.all_reduce(x.t()[3:7])
        return [x]

    assert_alike(run)


def check_one_to_all_and_all_to_one() -> None:
    root = WORLD_SIZE - 1

    def run(device: torch.device) -> list[Tensor]:
        x, y = draw(1003).to(device), draw(1003, seed=1).to(device)
        dist.broadcast(x, src=root)
        dist.reduce(y, dst=0)
        parts = [torch.zeros(7, device=device) for _ in range(WORLD_SIZE)] if RANK == 0 else None
        dist.gather(draw(7, seed=2).to(device), parts, dst=0)
        mine = torch.zeros(5, device=device)
        given = [draw(5, seed=3 + r).to(device) for r in range(WORLD_SIZE)]
        dist.scatter(mine, given if root == RANK else None, src=root)
        return [x, *([y] if RANK == 0 else []), *(parts or []), mine]

    assert_alike(run)


def check_gathers() -> None:
    def run(device: torch.device) -> list[Tensor]:
        parts = [torch.zeros(1003, device=device) for _ in range(WORLD_SIZE)]
        dist.all_gather(parts, draw(1003).to(device))
        uneven = [torch.zeros(3 + r, device=device) for r in range(WORLD_SIZE)]
        dist.all_gather(uneven, draw(3 + RANK).to(device))
        whole = torch.zeros(WORLD_SIZE * 11, device=device)
        dist.all_gather_into_tensor(whole, draw(11).to(device))
        return [*parts, *uneven, whole]

    assert_alike(run)


def check_reduce_scatters() -> None:
    def run(device: torch.device) -> list[Tensor]:
        first, second = (torch.zeros(9, device=device) for _ in range(2))
        inputs = [draw(9, seed=r).to(device) for r in range(WORLD_SIZE)]
        dist.reduce_scatter(first, inputs)
        dist.reduce_scatter_tensor(second, draw(9 * WORLD_SIZE).to(device), op=OPS.AVG)
        return [first, second]

    assert_alike(run)


def check_large_parts() -> None:
    def run(device: torch.device) -> list[Tensor]:
        part, whole = draw(LARGE).to(device), torch.zeros(WORLD_SIZE * LARGE, device=device)
        dist.all_gather_into_tensor(whole, part)
        dist.reduce_scatter_tensor(part, whole + RANK, op=OPS.AVG)
        return [whole, part]

    assert_alike(run)


def check_all_to_all() -> None:
    def run(device: torch.device) -> list[Tensor]:
        outputs = [torch.zeros(4, device=device) for _ in range(WORLD_SIZE)]
        dist.all_to_all(outputs, [draw(4, seed=r).to(device) for r in range(WORLD_SIZE)])
        single = torch.zeros(WORLD_SIZE * (RANK + 1), device=device)
        splits = [r + 1 for r in range(WORLD_SIZE)]
        dist.all_to_all_single(
            single, draw(sum(splits)).to(device), [RANK + 1] * WORLD_SIZE, splits
        )
        return [*outputs, single]

    assert_alike(run)


def check_messages() -> None:
    def run(device: torch.device) -> list[Tensor]:
        x, y = draw(1003).to(device), torch.zeros(1003, device=device)
        sent = dist.isend(x, (RANK + 1) % WORLD_SIZE)
        dist.recv(y, (RANK - 1) % WORLD_SIZE)
        sent.wait()
        return [y]

    expected, found = run(CPU), run(DEVICE)  # the host waits for these: no stream may lag
    assert torch.equal(found[0].cpu(), expected[0])


def check_coalesced() -> None:
    def run(device: torch.device) -> list[Tensor]:
        tensors = [draw(count).to(device) for count in (3, 1003, 70_001)]
        with dist._coalescing_manager(async_ops=True) as manager:
            for tensor in tensors:
                dist.all_reduce(tensor)
        manager.wait()
        wholes = [torch.zeros(WORLD_SIZE * n, device=device) for n in (3, 40)]
        with dist._coalescing_manager(async_ops=True) as manager:
            for whole, n in zip(wholes, (3, 40), strict=True):
                dist.all_gather_into_tensor(whole, draw(n).to(device))
        manager.wait()
        return [*tensors, *wholes]

    assert_alike(run)


def check_wait_does_not_block_the_host() -> None:
    with lagging() as (stream, gate):
        x = torch.full((LARGE,), RANK + 1.0).to(DEVICE)
        work = dist.all_reduce(x, async_op=True)
        work.wait()
        x.mul_(2)
        assert not stream.query()
        assert not work.is_completed()
        gate.open()
        assert (x.cpu() == 2 * TOTAL).all()
        assert work.is_completed()


def check_a_stream_that_does_not_wait_is_too_early() -> None:
    # So the other checks here would see that a dependency is missing.
    x = torch.zeros(1777).to(DEVICE)  # not what an earlier check left in this memory
    x.cpu()  # the zeros are there
    with lagging() as (_, gate):
        x.copy_(torch.full((1777,), 7 * (RANK + 1.0)))
        work = dist.all_reduce(x, async_op=True)
        with torch.Stream(device=DEVICE):
            early = x.cpu()
        gate.open()
        work.wait()
        assert (x.cpu() == 7 * TOTAL).all()
        assert not (early == 7 * TOTAL).any()


def check_several_streams() -> None:
    with lagging() as (_, first):
        x = torch.full((1000,), RANK + 1.0).to(DEVICE)
        work_x = dist.all_reduce(x, async_op=True)
        with lagging() as (_, second):
            y = torch.full((1000,), 10 * (RANK + 1.0)).to(DEVICE)
            work_y = dist.all_reduce(y, async_op=True)
            work_x.wait()
            work_y.wait()
            y.add_(x)  # of both, on one stream
            second.open()
            first.open()
            assert (y.cpu() == 11 * TOTAL).all()


def check_memory_of_a_dropped_work_is_not_used_too_early() -> None:
    with lagging() as (_, gate):
        for _ in range(3):
            works = [dist.all_reduce(draw(5000).to(DEVICE), async_op=True) for _ in range(4)]
            parts = [torch.zeros(1250, device=DEVICE) for _ in range(WORLD_SIZE)]
            dist.all_gather(parts, draw(1250).to(DEVICE), async_op=True)
            del works, parts
            gc.collect()
        kept = [torch.full((5000,), float(i)).to(DEVICE) for i in range(8)]
        gate.open()
        for i, x in enumerate(kept):
            assert (x.cpu() == i).all(), i


def check_many_in_flight_between_those_of_the_cpu() -> None:
    with lagging() as (_, gate):
        xs = [torch.full((3000,), float(i)).to(DEVICE) for i in range(12)]
        works, hosts = [], []
        for x in xs:
            works.append(dist.all_reduce(x, async_op=True))
            hosts.append(torch.ones(10))
            works.append(dist.all_reduce(hosts[-1], async_op=True))
        gate.open()
        for work in works:
            work.wait()
        assert all((host == WORLD_SIZE).all() for host in hosts)
        for i, x in enumerate(xs):
            assert (x.cpu() == i * WORLD_SIZE).all(), i
    once = torch.ones(3)
    dist.all_reduce(once)
    assert (once == WORLD_SIZE).all()


def check_futures() -> None:
    with lagging() as (stream, gate):
        x = torch.full((1000,), RANK + 1.0).to(DEVICE)
        work = dist.all_reduce(x, async_op=True)
        halves = work.get_future().then(lambda future: future.value()[0].clone().div_(2))
        assert not stream.query()
        gate.open()
        assert (halves.wait().cpu() == TOTAL / 2).all()
        (same,) = work.get_future().wait()
        assert (same.cpu() == TOTAL).all()


def check_mixed_devices_are_refused() -> None:
    x = torch.ones(3).to(DEVICE)
    parts = [torch.zeros(3) for _ in range(WORLD_SIZE)]
    words = raises(UsageError, lambda: dist.all_gather(parts, x))
    assert "all be on the same device" in words, words
    assert "cpu" in words, words


def check_sparse_tensors_are_refused() -> None:
    indices, values = torch.tensor([[0, 2]]).to(DEVICE), torch.ones(2).to(DEVICE)
    sparse = torch.sparse_coo_tensor(indices, values, (4,), check_invariants=False)
    backend = dist.group.WORLD._get_backend(DEVICE)  # torch's own dispatch lets CUDA through alone
    words = raises(UsageError, lambda: backend.allreduce([sparse]))
    assert "privateuseone:0" in words, words


def check_a_dtype_that_cannot_be_reduced_is_refused() -> None:
    x = torch.zeros(4, dtype=torch.float8_e5m2).to(DEVICE)
    assert "cannot reduce" in raises(UsageError, lambda: dist.all_reduce(x))


if __name__ == "__main__":
    main(dict(globals()))
