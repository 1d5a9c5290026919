"""A child that is forked from a rank: it drops the group it inherits and makes its own."""

import gc
import os
import signal
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from harness import FOLDER, RANK, TIMEOUT, WORLD_SIZE, main, raises

import allreduce


def in_child(body: Callable[[], None]) -> None:
    """Runs it in a forked child, which must end well."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        try:
            body()
        except BaseException as error:
            print(f"child of rank {RANK}: {type(error).__name__}: {error}", flush=True)
            os._exit(1)
        os._exit(0)
    until = time.monotonic() + 40
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert status == 0, status
            return
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("the child hangs")


def make_a_world(name: str) -> None:
    dist.init_process_group(
        "hier",
        init_method=f"file://{FOLDER}/{name}",
        rank=RANK,
        world_size=WORLD_SIZE,
        timeout=TIMEOUT,
    )
    for _ in range(3):
        x = torch.ones(1000)
        future = dist.all_reduce(x, async_op=True).get_future()
        then = future.then(lambda f: f.value()[0][0].item())
        assert then.wait() == WORLD_SIZE
    dist.destroy_process_group()


def have_futures() -> None:
    """The pool has threads, some of them idle."""
    futures = [dist.all_reduce(torch.ones(10), async_op=True).get_future() for _ in range(4)]
    for future in futures:
        future.wait()


def check_a_child_makes_a_world_of_its_own() -> None:
    have_futures()

    def body() -> None:
        dist.destroy_process_group()
        gc.collect()
        make_a_world("child")

    in_child(body)
    have_futures()


def check_everything_inherited_refuses_at_once() -> None:
    have_futures()
    x = torch.ones(10)
    # Nobody sends it before the child has ended.
    open_work = dist.irecv(x, (RANK + 1) % WORLD_SIZE)
    over = dist.all_reduce(torch.ones(10), async_op=True)
    over.wait()
    backend = dist.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))

    def body() -> None:
        calls: dict[str, Callable[[], object]] = {
            "all_reduce": lambda: dist.all_reduce(x),
            "async": lambda: dist.all_reduce(x, async_op=True),
            "barrier": dist.barrier,
            "irecv": lambda: dist.irecv(x, 0 if RANK else 1),
            "wait": open_work.wait,
            "is_completed": open_work.is_completed,
            "get_future": open_work.get_future,
            "source": open_work._source_rank,
            "wait of one that is over": over.wait,
            "abort": backend.abort,
            "monitoredBarrier": lambda: backend.monitored_barrier(),
        }
        for name, call in calls.items():
            text = raises(allreduce.UsageError, call)
            assert "forked" in text, (name, text)

    in_child(body)
    dist.send(torch.full((10,), 5.0), (RANK - 1) % WORLD_SIZE)
    open_work.wait()
    assert x[0].item() == 5.0


def check_a_child_that_does_nothing_ends_well() -> None:
    have_futures()
    in_child(gc.collect)


if __name__ == "__main__":
    main(dict(globals()))
