"""Calls that touch the same memory: on the CPU, and on the device of cpu_device.cc if there is one.

Nobody waits between two calls of a pair; their results must be those of one call after the other.
"""

import gc
import os
import threading
import time
import weakref
from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist
from harness import RANK, WORLD_SIZE, main, raises
from torch import Tensor

from allreduce.errors import UsageError

P = WORLD_SIZE
TOTAL = P * (P + 1) // 2
TRIES = 60
COUNTS = (1000, 1 << 18)  # elements of a rank's part
DEVICE = torch.device("cpu")
if "ALLREDUCE_DEVICE_RUNTIME" in os.environ:
    import cpu_device

    cpu_device.load()
    DEVICE = torch.device("privateuseone", 0)


def full(count: int, value: float) -> Tensor:
    return torch.full((count,), float(value)).to(DEVICE)


def strided(count: int, value: float) -> Tensor:
    """Not contiguous: the backend works on a copy of it."""
    return full(2 * count, value)[::2]


def is_full(x: Tensor, value: float) -> bool:
    return bool((x.cpu() == value).all())


def assert_always(pair: Callable[[int], bool]) -> None:
    for count in COUNTS:
        tries = TRIES if count == COUNTS[0] else TRIES // 4
        right = sum(pair(count) for _ in range(tries))
        assert right == tries, f"{right} of {tries} are right at {count} elements"


def check_barrier_comes_after_earlier_calls() -> None:
    def pair(count: int) -> bool:
        x, y = full(4 * count, RANK + 1), strided(count, RANK + 1)
        works = [dist.all_reduce(t, async_op=True) for t in (x, y)]
        dist.barrier()
        right = is_full(x, TOTAL) and is_full(y, TOTAL)
        for work in works:
            work.wait()
        return right

    assert_always(pair)


def check_barrier_in_the_background_comes_after_earlier_calls() -> None:
    def pair(count: int) -> bool:
        x = full(4 * count, RANK + 1)
        work = dist.all_reduce(x, async_op=True)
        dist.barrier(async_op=True).wait()
        right = is_full(x, TOTAL)
        work.wait()
        return right

    assert_always(pair)


def check_all_gather_of_what_reduce_scatter_makes() -> None:
    def pair(count: int) -> bool:
        x, o, f = full(P * count, RANK + 1), full(count, -1), full(P * count, -1)
        first = dist.reduce_scatter_tensor(o, x, async_op=True)
        second = dist.all_gather_into_tensor(f, o, async_op=True)
        second.wait()
        first.wait()
        return is_full(f, TOTAL) and is_full(o, TOTAL)

    assert_always(pair)


def check_all_gather_in_place_of_what_reduce_scatter_makes() -> None:
    def pair(count: int) -> bool:
        x, f = full(P * count, RANK + 1), full(P * count, -1)
        o = f[RANK * count : (RANK + 1) * count]
        first = dist.reduce_scatter_tensor(o, x, async_op=True)
        second = dist.all_gather_into_tensor(f, o, async_op=True)
        second.wait()
        first.wait()
        return is_full(f, TOTAL)

    assert_always(pair)


def check_all_reduce_of_what_broadcast_brings() -> None:
    def pair(count: int) -> bool:
        x = full(4 * count, RANK + 1)
        works = [dist.broadcast(x, 0, async_op=True), dist.all_reduce(x, async_op=True)]
        for work in reversed(works):
            work.wait()
        return is_full(x, P)

    assert_always(pair)


def check_all_reduce_twice() -> None:
    def pair(count: int) -> bool:
        x = full(4 * count, RANK + 1)
        works = [dist.all_reduce(x, async_op=True) for _ in range(3)]
        for work in reversed(works):
            work.wait()
        return is_full(x, TOTAL * P * P)

    assert_always(pair)


def check_all_reduce_twice_of_a_tensor_that_goes_through_a_copy() -> None:
    def pair(count: int) -> bool:
        x = strided(4 * count, RANK + 1)
        works = [dist.all_reduce(x, async_op=True) for _ in range(3)]
        for work in reversed(works):
            work.wait()
        return is_full(x, TOTAL * P * P)

    assert_always(pair)


def check_a_copy_and_its_memory_itself() -> None:
    def pair(count: int) -> bool:
        whole = full(4 * count, RANK + 1)
        works = [dist.all_reduce(t, async_op=True) for t in (whole[::2], whole, whole[1::2])]
        for work in reversed(works):
            work.wait()
        return is_full(whole, TOTAL * P)

    assert_always(pair)


def check_a_blocking_call_after_one_in_the_background() -> None:
    def pair(count: int) -> bool:
        x, y = full(4 * count, RANK + 1), strided(count, RANK + 1)
        works = [dist.all_reduce(t, async_op=True) for t in (x, y)]
        dist.all_reduce(x)
        dist.broadcast(y, 0)
        for work in works:
            work.wait()
        return is_full(x, TOTAL * P) and is_full(y, TOTAL)

    assert_always(pair)


def check_lists() -> None:
    def pair(count: int) -> bool:
        x = full(count, RANK + 1)
        outs = [full(count, -1) for _ in range(P)]
        sums = full(count, -1)
        works = [
            dist.all_reduce(x, async_op=True),
            dist.all_gather(outs, x, async_op=True),
            dist.reduce_scatter(sums, outs, async_op=True),
            dist.all_reduce(sums, op=dist.ReduceOp.MAX, async_op=True),
        ]
        works[-1].wait()
        right = is_full(sums, TOTAL * P)
        for work in works:
            work.wait()
        return right and all(is_full(out, TOTAL) for out in outs)

    assert_always(pair)


def check_all_to_all_of_what_all_reduce_makes() -> None:
    def pair(count: int) -> bool:
        x, y = full(P * count, RANK + 1), full(P * count, -1)
        works = [
            dist.all_reduce(x, async_op=True),
            dist.all_to_all_single(y, x, async_op=True),
            dist.all_reduce(y, async_op=True),
        ]
        for work in reversed(works):
            work.wait()
        return is_full(y, TOTAL * P)

    assert_always(pair)


def check_coalesced_calls() -> None:
    def pair(count: int) -> bool:
        a, b = full(count, RANK + 1), strided(count, RANK + 1)
        works = [dist.all_reduce_coalesced([a, b], async_op=True) for _ in range(2)]
        for work in reversed(works):
            work.wait()
        return is_full(a, TOTAL * P) and is_full(b, TOTAL * P)

    assert_always(pair)


def check_premultiplied_sums() -> None:
    def pair(count: int) -> bool:
        x = full(count, RANK + 1)
        twice = dist._make_nccl_premul_sum(2.0)
        works = [dist.all_reduce(x, op=twice, async_op=True) for _ in range(2)]
        for work in reversed(works):
            work.wait()
        return is_full(x, 4 * TOTAL * P)

    assert_always(pair)


def check_only_one_rank_sees_the_overlap() -> None:
    # So only this one delays its part: nothing may wait in a circle, whichever rank it is.
    def pair(count: int) -> bool:
        x, y = full(count, 1), full(count, 1)
        works = []
        for i in range(12):
            mine = x if i % P == RANK or i % 3 else y
            works.append(dist.all_reduce(mine, op=dist.ReduceOp.MAX, async_op=True))
        for work in reversed(works):
            work.wait()
        return is_full(x, 1) and is_full(y, 1)

    assert_always(pair)


def check_the_last_wait_on_a_device_covers_earlier_calls() -> None:
    if DEVICE.type == "cpu":
        return  # there each wait is for its own call

    def several(count: int) -> bool:
        xs = [full(count * (4 - i), RANK + 1) for i in range(4)]
        works = [dist.all_reduce(x, async_op=True) for x in xs]
        works[-1].wait()
        return all(is_full(x, TOTAL) for x in xs)

    assert_always(several)


def check_two_threads_that_take_turns() -> None:
    def pair(count: int) -> bool:
        x, works = full(4 * count, RANK + 1), []
        for _ in range(3):
            call = threading.Thread(target=lambda: works.append(dist.all_reduce(x, async_op=True)))
            call.start()
            call.join()
        for work in works:
            work.wait()
        return is_full(x, TOTAL * P * P)

    assert_always(pair)


def check_all_to_all_in_place() -> None:
    def pair(count: int) -> bool:
        x = torch.cat([torch.full((count,), 10.0 * RANK + r) for r in range(P)]).to(DEVICE)
        dist.all_to_all_single(x, x)
        parts = x.cpu().split(count)
        return all(bool((part == 10.0 * r + RANK).all()) for r, part in enumerate(parts))

    assert_always(pair)
    # Splits that differ: rank r sends r + 1 elements to each.
    mine = torch.full((P * (RANK + 1),), float(RANK)).to(DEVICE)
    room = torch.zeros(P * P).to(DEVICE)
    source, out = room[: P * (RANK + 1)], room[:TOTAL]
    source.copy_(mine)
    dist.all_to_all_single(out, source, [r + 1 for r in range(P)], [RANK + 1] * P)
    want = torch.cat([torch.full((r + 1,), float(r)) for r in range(P)])
    assert torch.equal(out.cpu(), want), out


def check_all_to_all_refuses_what_overlaps_in_part() -> None:
    x = torch.zeros(3 * P).to(DEVICE)
    for out, source in ((x[:P], x[1 : P + 1]), (x[P : 3 * P], x[: 2 * P])):
        said = raises(
            UsageError, lambda out=out, source=source: dist.all_to_all_single(out, source)
        )
        assert "overlap in part" in said, said
    dist.all_to_all_single(x[:P], x[P : 2 * P])


def check_all_gather_from_anywhere_in_its_output() -> None:
    count = 1000
    for begin in (RANK * count, 0, (P - 1) * count, max(0, RANK * count - 7)):
        out = full(P * count, -1)
        mine = out[begin : begin + count]
        mine.copy_(full(count, RANK + 1))
        dist.all_gather_into_tensor(out, mine)
        parts = out.cpu().split(count)
        assert all(bool((part == r + 1).all()) for r, part in enumerate(parts)), begin


def check_reduce_scatter_to_anywhere_in_its_input() -> None:
    count = 1000
    for begin in (RANK * count, 0, max(0, RANK * count - 7)):
        x = full(P * count, RANK + 1)
        out = x[begin : begin + count]
        dist.reduce_scatter_tensor(out, x)
        assert is_full(out, TOTAL), begin
        dist.reduce_scatter(out, list(full(P * count, RANK + 1).split(count)))
        assert is_full(out, TOTAL), begin


class Array(np.ndarray):
    """An array that can be watched."""


def check_nothing_is_kept_once_a_call_is_over() -> None:
    for _ in range(5):
        array = np.zeros(2000, np.float32).view(Array)
        watched = weakref.ref(array)
        x = torch.from_numpy(array)[::2]
        works = [dist.all_reduce(x, async_op=True) for _ in range(2)]
        for work in works:
            work.wait()
        del array, x, works, work
        until = time.monotonic() + 20  # a thread of the pool may be at it still
        while watched() is not None and time.monotonic() < until:
            gc.collect()
            time.sleep(0.01)
        assert watched() is None


if __name__ == "__main__":
    main(dict(globals()))
