"""Seconds of what is enqueued: of the device, by CUDA's events, and of the host, by its clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from benchmarks.gpu.place import Place

_BATCHES = 5
_CYCLES = 2e9  # a second, of a GPU's processors: no GPU's clock is faster by much
_LONGEST = 1.0  # seconds of sleep
Call = Callable[[int], object]


def seconds_each(place: Place, call: Call, calls: int, warm_up: int = 3) -> float:
    """Return the median over batches of the seconds of a call.

    On a GPU these are the device's alone, which sleeps until a batch is enqueued: what Python
    takes to call a kernel is longer than many a kernel.

    call: gets a number that goes on counting, by which it can choose among buffers.
    """
    for number in range(warm_up):
        call(number)
    batch = _device_batch if place.gpu else _host_batch
    return statistics.median(batch(call, calls) for _ in range(_BATCHES))


def host_seconds_each(place: Place, call: Call, calls: int, warm_up: int = 3) -> float:
    """Return the same of this thread, until a call returns; what it enqueues may run later."""
    for number in range(warm_up):
        call(number)
    times = []
    for _ in range(_BATCHES):
        _synchronize(place)
        times.append(_host_batch(call, calls))
    _synchronize(place)
    return statistics.median(times)


def _synchronize(place: Place) -> None:
    if place.gpu:
        import torch

        torch.cuda.synchronize()


def _device_batch(call: Call, calls: int) -> float:
    import torch

    asleep = 2e-3
    while True:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda._sleep(int(asleep * _CYCLES))
        begin.record()
        for number in range(calls):
            call(number)
        waited = begin.query()  # the device woke up before all was enqueued
        end.record()
        end.synchronize()
        if not waited or asleep >= _LONGEST:
            return float(begin.elapsed_time(end)) / 1e3 / calls
        asleep *= 4


def _host_batch(call: Call, calls: int) -> float:
    begin = time.perf_counter()
    for number in range(calls):
        call(number)
    return (time.perf_counter() - begin) / calls
