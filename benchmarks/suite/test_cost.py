"""What the way through c10d costs: the time of a call, and what a process group takes.

A blocking call of one element, in a group of one rank, where nothing travels: torch.distributed's
own share is that of its backend "fake", which does nothing. And of two ranks, beside the core's own
call.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

import allreduce.torch  # noqa: F401  (registers hier where the package is not installed)
from benchmarks.conftest import Report
from benchmarks.harness.layout_worlds import WorldsByLayout
from benchmarks.harness.layouts import Layout

CALLS = 300
ROUNDS = 9
_CALL_HEADER = "one element, 1 rank: us a call     median"
_TURNS_HEADER = (
    "backend fake, a call and a yield of each process on one core: us together     median"
)
_PAIR_HEADER = "one element, 2 ranks, one node: us a call     median"
_GROUP_HEADER = "of a process group of one rank     each"


def median_us(call: Callable[[], object]) -> float:
    """Return microseconds per call, the median of rounds."""
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for _ in range(CALLS):
            call()
        times.append((time.perf_counter() - begin) / CALLS)
    return statistics.median(times) * 1e6


@pytest.fixture
def alone(request: pytest.FixtureRequest) -> Iterator[str]:
    """Be the one rank of a group of the backend that is asked for."""
    name = request.param
    torch.set_num_threads(1)
    store = FakeStore() if name == "fake" else dist.HashStore()
    dist.init_process_group(name, store=store, rank=0, world_size=1)
    yield name
    dist.destroy_process_group()


@pytest.mark.parametrize("alone", ["fake", "hier", "gloo"], indirect=True)
@pytest.mark.parametrize("way", ["blocking", "async"])
def test_a_call_alone(alone: str, way: str, benchmark, report: Report) -> None:
    """Measure one call through torch.distributed."""
    tensor = torch.ones(1)

    def call() -> None:
        if way == "async":
            dist.all_reduce(tensor, async_op=True).wait()
        else:
            dist.all_reduce(tensor)

    microseconds = benchmark.pedantic(median_us, args=(call,), warmup_rounds=1)
    report.row(_CALL_HEADER, f"{alone + ', ' + way:<30} {microseconds:>10.2f}")


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_calls_in_turns_on_one_core(processes: int, benchmark, report: Report) -> None:
    """Measure torch's own share where ranks share a core: it finds the caches of the others."""
    microseconds = benchmark.pedantic(_in_turns, args=(processes,), rounds=1)
    report.row(_TURNS_HEADER, f"{processes:<52} {microseconds:>10.2f}")


def _in_turns(processes: int) -> float:
    """Return microseconds in which each process makes one call of the backend that does nothing."""
    context = multiprocessing.get_context("fork")
    together, found = context.Barrier(processes), context.SimpleQueue()
    core = min(os.sched_getaffinity(0))
    started = [
        context.Process(target=_take_turns, args=(core, together, found), daemon=True)
        for _ in range(processes)
    ]
    for process in started:
        process.start()
    times = [found.get() for _ in started]
    for process in started:
        process.join()
    return statistics.median(times)


def _take_turns(core: int, together: Any, found: Any) -> None:
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    tensor = torch.ones(1)

    def call() -> None:
        dist.all_reduce(tensor)
        os.sched_yield()

    median_us(call)
    together.wait()
    found.put(median_us(call))
    os._exit(0)  # no destructors of what the parent has


def test_a_call_of_two_ranks(worlds_by_layout: WorldsByLayout, benchmark, report: Report) -> None:
    """Measure the core from C++ and NumPy, hier and Gloo through torch, turn by turn."""
    worlds = worlds_by_layout.of(Layout(2, 1))
    times: dict[str, list[float]] = {
        name: [] for name in ("core", "numpy", "hier", "hier-async", "gloo", "gloo-async")
    }

    def one_round() -> None:
        for player, seconds in times.items():
            turn = worlds.measure(player, 4, "float32", CALLS, warm_up=CALLS)
            assert turn is not None
            seconds.append(statistics.median(turn.seconds))

    benchmark.pedantic(one_round, rounds=ROUNDS)
    for player, seconds in times.items():
        report.row(_PAIR_HEADER, f"{player:<41} {statistics.median(seconds) * 1e6:>10.2f}")


def test_what_a_group_takes(benchmark, report: Report) -> None:
    """Count threads, descriptors and resident memory of 50 groups, all of which have worked."""
    dist.init_process_group("hier", store=dist.HashStore(), rank=0, world_size=1)
    count = 50

    def make() -> None:
        for _ in range(count):
            group = dist.new_group([0])
            dist.all_reduce(torch.ones(1), group=group)

    before = _usage()
    benchmark.pedantic(make, rounds=1)
    after = _usage()
    dist.destroy_process_group()
    for name, was in before.items():
        report.row(_GROUP_HEADER, f"{name:<30} {(after[name] - was) / count:>10.2f}")


def _usage() -> dict[str, float]:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "threads": float(len(os.listdir("/proc/self/task"))),
        "descriptors": float(len(os.listdir("/proc/self/fd"))),
        "resident KiB": pages * resource.getpagesize() / 1024,
    }
