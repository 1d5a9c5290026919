"""The backend's collectives against expected values, and what it refuses."""

import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from harness import RANK, WORLD_SIZE, join, main, raises

import allreduce

OPS = dist.ReduceOp
TOTAL = WORLD_SIZE * (WORLD_SIZE + 1) // 2  # 1 + 2 + ... + WORLD_SIZE
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def mine(count: int = 5, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full((count,), RANK + 1).to(dtype)


def equal(tensor: torch.Tensor, value: float) -> bool:
    return bool((tensor.float() == value).all())


def group_to_spoil() -> dist.ProcessGroup:
    """A group for errors. No rank is still making it when the first error ends all that goes on."""
    group = dist.new_group(backend="hier")
    dist.barrier()
    return group


def check_sum_of_every_dtype() -> None:
    for dtype in FLOATS + INTS:
        x = mine(1003, dtype)
        dist.all_reduce(x)
        assert equal(x, TOTAL), (dtype, x)


def check_every_operation() -> None:
    expected = {OPS.MIN: 1, OPS.MAX: WORLD_SIZE, OPS.PRODUCT: 1}
    for rank in range(WORLD_SIZE):
        expected[OPS.PRODUCT] *= rank + 1
    for op, value in expected.items():
        x = mine()
        dist.all_reduce(x, op)
        assert equal(x, value), (op, x)
    x = mine()
    dist.all_reduce(x, OPS.AVG)
    assert equal(x, TOTAL / WORLD_SIZE)
    for op, value in {
        OPS.BOR: (1 << WORLD_SIZE) - 1,
        OPS.BAND: 0,
        OPS.BXOR: 15 >> (4 - WORLD_SIZE),
    }.items():
        bits = torch.full((3,), 1 << RANK)
        dist.all_reduce(bits, op)
        assert equal(bits, value), (op, bits)


def check_bool_and_complex() -> None:
    flags = torch.tensor([True, RANK == 0, False])
    dist.all_reduce(flags)
    assert flags.tolist() == [True, True, False]
    z = torch.full((4,), complex(RANK + 1, -1))
    dist.all_reduce(z)
    assert (z == complex(TOTAL, -WORLD_SIZE)).all()


def check_empty_and_scalar() -> None:
    dist.all_reduce(torch.empty(0))
    scalar = torch.tensor(1.0)
    dist.all_reduce(scalar)
    assert scalar.item() == WORLD_SIZE


def check_strides_are_kept() -> None:
    base = torch.zeros(6, 4)
    x = base.t()[1:3].fill_(RANK + 1)
    dist.all_reduce(x)
    assert equal(base[:, 1:3], TOTAL)
    assert equal(base[:, [0, 3]], 0)


def check_broadcast_from_each_root() -> None:
    for root in range(WORLD_SIZE):
        x = mine(100)
        dist.broadcast(x, root)
        assert equal(x, root + 1)


def check_reduce_changes_the_root_only() -> None:
    x = mine(100)
    dist.reduce(x, WORLD_SIZE - 1)
    assert equal(x, TOTAL if RANK == WORLD_SIZE - 1 else RANK + 1)


def check_all_gather() -> None:
    outputs = [torch.empty(2, 3).t() for _ in range(WORLD_SIZE)]
    dist.all_gather(outputs, torch.full((3, 2), RANK + 1.0))
    assert all(equal(x, rank + 1) for rank, x in enumerate(outputs))


def check_all_gather_of_uneven_parts() -> None:
    outputs = [torch.empty(rank + 1) for rank in range(WORLD_SIZE)]
    dist.all_gather(outputs, mine(RANK + 1))
    assert all(equal(x, rank + 1) for rank, x in enumerate(outputs))


def check_all_gather_into_tensor() -> None:
    for dtype in (torch.float32, torch.complex128, torch.float8_e5m2):
        output = torch.zeros(WORLD_SIZE * 3, dtype=dtype)
        dist._all_gather_base(output, mine(3, dtype))
        expected = torch.arange(1.0, WORLD_SIZE + 1).repeat_interleave(3)
        assert torch.equal(output.to(torch.complex64), expected.to(torch.complex64)), output


def check_gather() -> None:
    outputs = [torch.empty(5) for _ in range(WORLD_SIZE)] if RANK == 1 else None
    dist.gather(mine(), outputs, dst=1)
    assert all(equal(x, rank + 1) for rank, x in enumerate(outputs or []))


def check_reduce_scatter() -> None:
    inputs = [torch.full((4,), (RANK + 1.0) * (part + 1)) for part in range(WORLD_SIZE)]
    output = torch.empty(4)
    dist.reduce_scatter(output, inputs)
    assert equal(output, TOTAL * (RANK + 1))
    assert all(equal(x, (RANK + 1) * (part + 1)) for part, x in enumerate(inputs))


def check_reduce_scatter_tensor() -> None:
    whole = torch.arange(1.0, WORLD_SIZE + 1).repeat_interleave(4) * (RANK + 1)
    before, output = whole.clone(), torch.empty(2, 2)
    dist._reduce_scatter_base(output, whole, OPS.AVG)
    assert equal(output, TOTAL * (RANK + 1) / WORLD_SIZE)
    assert torch.equal(whole, before)


def check_coalesced() -> None:
    tensors = [mine(count) for count in (1, 0, 1000)]
    with dist._coalescing_manager():
        for x in tensors:
            dist.all_reduce(x)
    assert all(equal(x, TOTAL) for x in tensors)


def check_functional_collectives() -> None:
    x = functional.all_reduce(mine(), "sum", dist.group.WORLD)
    assert equal(functional.wait_tensor(x), TOTAL)
    x = functional.all_gather_tensor(mine(2), 0, dist.group.WORLD)
    assert x.tolist() == [r + 1 for r in range(WORLD_SIZE) for _ in range(2)]
    x = functional.reduce_scatter_tensor(torch.ones(WORLD_SIZE), "sum", 0, dist.group.WORLD)
    assert x.tolist() == [WORLD_SIZE]


def check_a_tensor_that_requires_grad() -> None:
    parameter = torch.nn.Parameter(mine())
    with torch.no_grad():
        dist.all_reduce(parameter)
    outputs = [torch.empty(5) for _ in range(WORLD_SIZE)]
    dist.all_gather(outputs, parameter)
    assert equal(outputs[0], TOTAL)
    assert not outputs[0].requires_grad


def check_async_work_and_its_future() -> None:
    x = mine()
    work = dist.all_reduce(x, async_op=True)
    assert work.get_future().wait()[0] is x
    assert work.wait()
    assert work.is_completed()
    assert equal(x, TOTAL)
    outputs = [torch.empty(5).expand(2, 5).t() * 0 for _ in range(WORLD_SIZE)]
    future = dist.all_gather(outputs, mine(10).view(5, 2), async_op=True).get_future()
    future.wait()
    assert all(equal(y, rank + 1) for rank, y in enumerate(outputs))


def check_the_future_of_an_ended_work() -> None:
    work = dist.barrier(async_op=True)
    work.wait()
    time.sleep(0.05)
    assert work.get_future().wait() == []


def check_many_in_flight() -> None:
    tensors = [mine(1 + 997 * i) for i in range(40)]
    works = [dist.all_reduce(x, async_op=True) for x in tensors]
    for work in works:
        work.wait()
    assert all(equal(x, TOTAL) for x in tensors)


def check_results_arrive_without_a_wait() -> None:
    outputs = [torch.zeros(3) for _ in range(WORLD_SIZE)]
    work = dist.all_gather(outputs, mine(3), async_op=True)
    deadline = time.monotonic() + 20
    while not work.is_completed() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert all(equal(x, rank + 1) for rank, x in enumerate(outputs))


def check_dropped_tensors_live_until_the_end() -> None:
    for _ in range(20):
        dist.all_reduce(torch.ones(100_000), async_op=True)
    gc.collect()


def check_callbacks_may_wait_for_other_collectives() -> None:
    def reduce_again(future: torch.futures.Future) -> torch.Tensor:
        (x,) = future.value()
        dist.all_reduce(x, async_op=True).wait()
        return x

    futures = []
    for _ in range(12):  # one after another, so that the ranks' second calls have one order
        futures.append(dist.all_reduce(torch.ones(10), async_op=True).get_future())
        futures[-1] = futures[-1].then(reduce_again)
        assert equal(futures[-1].wait(), WORLD_SIZE**2)


def check_blocked_callbacks_hold_up_no_other() -> None:
    released = threading.Event()

    def block(_: torch.futures.Future) -> None:
        if threading.current_thread() is not threading.main_thread():  # then() of an ended future
            released.wait(20)

    futures = [dist.all_reduce(torch.ones(1), async_op=True).get_future() for _ in range(8)]
    blocked = [future.then(block) for future in futures]
    x = dist.all_reduce(torch.ones(1), async_op=True).get_future().wait()
    assert x[0].item() == WORLD_SIZE
    released.set()
    torch.futures.wait_all(blocked)


def check_a_wait_that_times_out_can_be_repeated() -> None:
    x = torch.ones(1)
    if RANK == 0:
        work = dist.all_reduce(x, async_op=True)
        message = raises(TimeoutError, lambda: work.wait(timedelta(milliseconds=50)))
        assert "50 ms" in message
        work.wait()
    else:
        time.sleep(0.5)
        dist.all_reduce(x)
    assert x.item() == WORLD_SIZE


def check_profiler_events() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        dist.all_reduce(torch.ones(3))
        dist.broadcast(torch.ones(3), 0, async_op=True).wait()
        time.sleep(0.05)
    names = {event.name for event in profile.events()}
    assert {"hier:all_reduce", "hier:broadcast"} <= names, names


def check_a_mismatch_is_a_typed_error_on_every_rank() -> None:
    group = group_to_spoil()
    x = torch.ones(3 if RANK == 0 else 4)
    message = raises(allreduce.MismatchError, lambda: dist.all_reduce(x, group=group))
    assert "[3]" in message
    assert "[4]" in message
    raises(allreduce.AbortedError, lambda: dist.all_reduce(x, group=group))


def check_a_mismatch_reaches_futures() -> None:
    group = group_to_spoil()
    x = torch.ones(3 if RANK == 0 else 4)
    future = dist.all_reduce(x, async_op=True, group=group).get_future()
    raises(allreduce.MismatchError, future.wait)


def check_a_group_timeout_is_a_typed_error() -> None:
    group = group_to_spoil()
    group._get_backend(torch.device("cpu")).set_timeout(timedelta(seconds=1))
    if RANK == 0:
        message = raises(TimeoutError, lambda: dist.all_reduce(torch.ones(1), group=group))
        assert "rank" in message
    dist.barrier()


def check_abort_ends_a_waiting_rank() -> None:
    group = group_to_spoil()
    if RANK == 0:
        work = dist.all_reduce(torch.ones(1), async_op=True, group=group)
        group._get_backend(torch.device("cpu")).abort()
        raises(allreduce.AbortedError, work.wait)
    dist.barrier()
    raises(allreduce.Error, lambda: dist.barrier(group=group))


@contextlib.contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Ctrl-C in this process; fails if the block took long to notice."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < seconds + 10
    timer.join()


def check_ctrl_c_ends_a_blocking_call() -> None:
    group = group_to_spoil()
    if RANK == 0:
        with interrupted_after(0.3):
            raises(KeyboardInterrupt, lambda: dist.all_reduce(torch.ones(1), group=group))
    dist.barrier()
    calls = (dist.all_reduce(torch.ones(1), group=group) for _ in range(2))
    message = raises(allreduce.AbortedError, lambda: list(calls))  # the first may still succeed
    assert "KeyboardInterrupt" in message, message


def check_ctrl_c_ends_a_wait() -> None:
    x = torch.ones(1)
    if RANK == 0:
        work = dist.all_reduce(x, async_op=True)
        with interrupted_after(0.3):
            raises(KeyboardInterrupt, work.wait)
        work.wait()
    else:
        time.sleep(1)
        dist.all_reduce(x)
    assert x.item() == WORLD_SIZE


def check_subgroups() -> None:
    members = [0, WORLD_SIZE - 1]
    pair, alone = dist.new_group(members), dist.new_group([0])
    x = mine()
    if RANK in members:
        dist.all_reduce(x, group=pair)
        assert equal(x, 1 + WORLD_SIZE)
        whole, part = allreduce.torch.communicator(), allreduce.torch.communicator(pair)
        assert (part.num_nodes == 2) == (len({whole.node_of_rank[r] for r in members}) == 2)
    if RANK == 0:
        dist.all_reduce(x, group=alone)
        assert equal(x, 1 + WORLD_SIZE)


def check_communicator_of_another_backend() -> None:
    group = dist.new_group(backend="gloo")
    message = raises(allreduce.UsageError, lambda: allreduce.torch.communicator(group))
    assert "gloo" in message


def check_options_and_sequence_numbers() -> None:
    backend = dist.group.WORLD._get_backend(torch.device("cpu"))
    before = backend._get_sequence_number_for_group()
    dist.barrier()
    assert backend._get_sequence_number_for_group() == before + 1
    members = [0, WORLD_SIZE - 1]
    group = dist.new_group(members)
    if RANK in members:
        options = group._get_backend(torch.device("cpu")).options
        assert list(options.global_ranks_in_group) == members
    backend.set_timeout(timedelta(seconds=29))
    assert backend.options._timeout == timedelta(seconds=29)


def check_a_group_made_again_on_the_same_store() -> None:
    dist.destroy_process_group()
    join()
    x = mine()
    dist.all_reduce(x)
    assert equal(x, TOTAL)


if __name__ == "__main__":
    main(dict(globals()))
