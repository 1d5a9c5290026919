"""Works and their futures, in every order, while the pool that completes futures is slow."""

import gc
import threading
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from harness import RANK, WORLD_SIZE, main, raises

import allreduce


def started(elements: int = 1000) -> tuple[torch.Tensor, dist.Work]:
    x = torch.ones(elements)
    return x, dist.all_reduce(x, async_op=True)


def assert_complete(future: torch.futures.Future, x: torch.Tensor) -> None:
    assert future.done()
    assert future.value()[0] is x
    assert x[0].item() == WORLD_SIZE


def check_a_future_that_was_asked_for_is_complete_after_wait() -> None:
    for elements in (1, 1000, 1 << 20):
        x, work = started(elements)
        future = work.get_future()
        work.wait()
        assert_complete(future, x)


def check_a_future_that_is_asked_for_after_wait_is_complete() -> None:
    x, work = started()
    work.wait()
    assert_complete(work.get_future(), x)


def check_a_future_that_is_asked_for_after_the_end_is_complete() -> None:
    x, work = started()
    dist.all_reduce(torch.ones(1))
    dist.barrier()
    while not work.is_completed():
        time.sleep(0.001)
    assert_complete(work.get_future(), x)


def check_a_work_that_is_completed_has_a_complete_future() -> None:
    x, work = started()
    future = work.get_future()
    while not work.is_completed():
        time.sleep(0.001)
    assert_complete(future, x)


def check_the_future_of_a_blocking_call_is_complete() -> None:
    x = torch.ones(10)
    group = dist.distributed_c10d._get_default_group()
    options = dist.AllreduceOptions()
    options.asyncOp = False
    work = group.allreduce([x], options)
    work.wait()
    assert_complete(work.get_future(), x)


def check_a_future_completes_without_its_work() -> None:
    x, work = started()
    future = work.get_future()
    del work
    gc.collect()
    assert future.wait()[0] is x
    assert x[0].item() == WORLD_SIZE


def check_a_work_without_a_future_ends_without_anybody() -> None:
    x, work = started()
    del work
    gc.collect()
    dist.barrier()
    again = torch.ones(1)
    dist.all_reduce(again)
    while x[0].item() != WORLD_SIZE:
        time.sleep(0.001)


def check_callbacks_run_once_and_may_wait_for_other_collectives() -> None:
    for _ in range(4):
        seen: list[float] = []

        def reduce_again(future: torch.futures.Future, seen: list[float] = seen) -> None:
            (x,) = future.value()
            dist.all_reduce(x)
            other = dist.all_reduce(x, async_op=True)
            then = other.get_future().then(lambda f: seen.append(f.value()[0][0].item()))
            other.wait()
            then.wait()

        _, work = started()
        then = work.get_future().then(reduce_again)
        work.wait()
        then.wait()
        assert seen == [WORLD_SIZE**3], seen


def check_several_threads_wait_for_one_work() -> None:
    x, work = started(1 << 20)
    future = work.get_future()
    done = []

    def wait() -> None:
        work.wait()
        done.append(future.done())

    threads = [threading.Thread(target=wait, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert done == [True] * 4, done
    assert_complete(future, x)


def check_a_callback_may_wait_for_its_own_work() -> None:
    x, work = started()
    then = work.get_future().then(lambda _: work.wait())
    work.wait()
    assert then.wait()
    assert x[0].item() == WORLD_SIZE


def check_a_callback_that_fails_fails_its_own_future_alone() -> None:
    x, work = started()
    future = work.get_future()
    then = future.then(lambda _: 1 / 0)
    work.wait()
    assert_complete(future, x)
    assert "division" in raises(Exception, then.wait)


def check_a_wait_that_times_out_leaves_the_future_open() -> None:
    x = torch.ones(10)
    if RANK == 0:
        work = dist.all_reduce(x, async_op=True)
        future = work.get_future()
        raises(TimeoutError, lambda: work.wait(timedelta(milliseconds=50)))
        assert not future.done()
        assert not work.is_completed()
        dist.send(torch.ones(1), 1)
        work.wait()
        assert_complete(future, x)
    else:
        if RANK == 1:
            dist.recv(torch.ones(1), 0)
        dist.all_reduce(x)


def check_a_future_fails_with_its_work() -> None:
    group = dist.new_group()
    dist.barrier()
    if RANK == 0:
        work = dist.all_reduce(torch.ones(10), group=group, async_op=True)
        future = work.get_future()
        then = future.then(lambda f: f.value())
        raises(allreduce.AbortedError, work.wait)
        assert future.done()
        raises(RuntimeError, future.value)
        raises(RuntimeError, then.wait)
        assert work.is_completed()
        raises(RuntimeError, work.get_future().value)
    else:
        time.sleep(0.3)
        group._get_backend(torch.device("cpu")).abort()
    dist.barrier()


if __name__ == "__main__":
    main(dict(globals()))
