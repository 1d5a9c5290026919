"""Groups come and go in one process: many at once, ended, aborted, made again, outlived."""

import gc
import os
import threading
import time
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist
from harness import FOLDER, RANK, TIMEOUT, WORLD_SIZE, join, main, raises

import allreduce

GROUPS = 50
THREADS_PER_GROUP = 1  # the worker, from a group's first asynchronous call on
FILES_PER_GROUP = 14  # 3 control links, 2 x 3 data connections, arena, 2 doorbells, 2 of its own


def held() -> tuple[int, int]:
    """This process's threads and open files."""
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))


def settled(threads: int, files: int, patience: float = 20.0) -> tuple[int, int]:
    """What is held once it is down to these numbers, or when patience has run out."""
    until = time.monotonic() + patience
    while True:
        now = held()
        if (now[0] <= threads and now[1] <= files) or time.monotonic() > until:
            return now
        gc.collect()
        time.sleep(0.05)


def assert_works(group: dist.ProcessGroup | None = None) -> None:
    x = torch.full((500,), RANK + 1.0)
    dist.all_reduce(x, group=group)
    assert x.tolist() == [WORLD_SIZE * (WORLD_SIZE + 1) / 2] * 500


def check_fifty_groups_in_one_process() -> None:
    assert_works()
    threads, files = held()
    groups = [dist.new_group() for _ in range(GROUPS)]
    for group in groups:
        assert_works(group)
        dist.all_reduce(torch.ones(1), group=group, async_op=True).wait()
    more_threads, more_files = held()
    per_group = (more_threads - threads) / GROUPS, (more_files - files) / GROUPS
    print("threads and open files per group:", per_group)
    assert per_group[0] <= THREADS_PER_GROUP + 0.2, per_group  # the pool has a few
    assert per_group[1] <= FILES_PER_GROUP, per_group
    tensors = [torch.full((100,), float(number)) for number in range(GROUPS)]
    pairs = zip(tensors, groups, strict=True)
    works = [dist.all_reduce(x, group=group, async_op=True) for x, group in pairs]
    for number, (x, work) in enumerate(zip(tensors, works, strict=True)):
        work.wait()
        assert x.tolist() == [number * WORLD_SIZE] * 100


def check_groups_leave_nothing_behind() -> None:
    threads, files = held()
    groups = [dist.new_group() for _ in range(5)]
    for group in groups:
        dist.all_reduce(torch.ones(1), group=group, async_op=True).wait()
    assert held() > (threads, files)
    dist.barrier()
    for group in groups:
        dist.destroy_process_group(group)
    del groups, group
    after = settled(threads + 3, files)  # the pool keeps a few idle ones for a while
    assert after[0] <= threads + 3, (after, threads)
    assert after[1] <= files, (after, files)


def check_groups_used_from_several_threads() -> None:
    groups = [dist.new_group() for _ in range(4)]
    errors: list[BaseException] = []

    def use(number: int) -> None:
        try:
            for i in range(40):
                x = torch.full((1 + 700 * (i % 3),), float(number + i))
                work = dist.all_reduce(x, group=groups[number], async_op=i % 2 == 0)
                if work:
                    work.wait()
                assert bool((x == (number + i) * WORLD_SIZE).all())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=use, args=(n,), daemon=True) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors, errors
    assert not any(thread.is_alive() for thread in threads)


def check_works_outlive_their_group() -> None:
    group = dist.new_group()
    x, y = torch.ones(1000), torch.full((1000,), 2.0)
    work = dist.all_reduce(x, group=group, async_op=True)
    other = dist.all_reduce(y, group=group, async_op=True)
    then = other.get_future().then(lambda future: future.value()[0].sum().item())
    other.wait()
    assert then.wait() == 2000.0 * WORLD_SIZE
    dist.barrier()  # no rank needs the group any more
    dist.destroy_process_group(group)
    del group
    gc.collect()
    assert work.wait()
    assert work.is_completed()
    assert bool((x == WORLD_SIZE).all())
    assert other.get_future().wait()[0] is y


def check_callbacks_wait_for_other_groups() -> None:
    first, second = dist.new_group(), dist.new_group()

    def reduce_again(future: torch.futures.Future) -> torch.Tensor:
        (x,) = future.value()
        dist.all_reduce(x, group=second)
        return x

    for _ in range(8):
        future = dist.all_reduce(torch.ones(10), group=first, async_op=True).get_future()
        x = future.then(reduce_again).wait()
        assert bool((x == WORLD_SIZE**2).all())


def check_a_group_of_one() -> None:
    groups = [dist.new_group([rank]) for rank in range(WORLD_SIZE)]
    mine = groups[RANK]
    x = torch.tensor([RANK + 1.0])
    dist.all_reduce(x, group=mine)
    dist.broadcast(x, src=RANK, group=mine)
    out = torch.zeros(1)
    dist.all_gather_into_tensor(out, x, group=mine)
    dist.reduce_scatter_tensor(x, out, group=mine)
    dist.barrier(group=mine)
    assert x.item() == out.item() == RANK + 1


def check_each_group_has_its_own_timeout() -> None:
    group = dist.new_group(timeout=timedelta(seconds=3))  # also for making it
    dist.barrier()
    begun = time.monotonic()
    if RANK == 0:
        raises(TimeoutError, lambda: dist.barrier(group=group))
        assert time.monotonic() - begun < TIMEOUT.total_seconds() / 2
    dist.barrier()
    assert_works()


def check_a_rank_outside_a_group_is_told_so() -> None:
    group = dist.new_group([0])
    if RANK:
        assert group == dist.GroupMember.NON_GROUP_MEMBER
        x = torch.ones(1)
        dist.all_reduce(x, group=group)  # torch warns and does nothing
        assert x.item() == 1.0


def check_a_destroyed_group_is_refused() -> None:
    group = dist.new_group()
    assert_works(group)
    dist.barrier()
    backend = group._get_backend(torch.device("cpu"))
    dist.destroy_process_group(group)
    raises(ValueError, lambda: dist.all_reduce(torch.ones(1), group=group))
    raises(allreduce.Error, lambda: backend.allreduce([torch.ones(1)]).wait())


def check_a_shutdown_of_what_is_shut_down_does_nothing() -> None:
    group = dist.new_group()
    assert_works(group)
    group.shutdown()
    group.shutdown()
    group._get_backend(torch.device("cpu")).shutdown()
    dist.destroy_process_group(group)


def again(name: str) -> None:
    """A world as harness.join makes it, over a file of its own."""
    dist.init_process_group(
        "hier",
        init_method=f"file://{FOLDER}/{name}",
        rank=RANK,
        world_size=WORLD_SIZE,
        timeout=TIMEOUT,
    )


def check_the_world_is_made_again_and_again() -> None:
    dist.destroy_process_group()
    seen = []
    for number in range(4):
        again(f"again{number}")
        assert_works()
        assert_works(dist.new_group())
        dist.barrier()
        dist.destroy_process_group()
        gc.collect()
        seen.append(held())
    assert settled(*seen[0]) <= (seen[0][0] + 2, seen[0][1]), seen
    join()
    assert_works()


def meet() -> None:
    """Waits for all ranks without a group."""
    (FOLDER / f"here{RANK}").touch()
    until = time.monotonic() + TIMEOUT.total_seconds()
    while len(list(FOLDER.glob("here*"))) < WORLD_SIZE:
        assert time.monotonic() < until
        time.sleep(0.005)


def check_the_world_is_made_again_after_an_abort() -> None:
    work = None
    meet()  # an abort ends what other ranks still wait for, such as the barrier before this check
    if RANK == 0:  # the others never call it
        work = dist.all_reduce(torch.ones(1), async_op=True)
    dist.distributed_c10d._abort_process_group()
    assert not dist.is_initialized()
    if work:
        raises(allreduce.AbortedError, work.wait)
    again("after_abort")
    assert_works()


def check_works_in_flight_outlive_their_group() -> None:
    for late in range(2):
        group = dist.new_group()
        dist.barrier()
        x = torch.ones(1 << 20)
        time.sleep(0.3 if late == RANK else 0)
        work = dist.all_reduce(x, group=group, async_op=True)
        dist.destroy_process_group(group)
        del group
        gc.collect()
        assert work.wait()
        assert bool((x == WORLD_SIZE).all())


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=UserWarning)
    main(dict(globals()))
