"""Seconds of what is enqueued: by CUDA's events on a GPU, by this process's clock elsewhere."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from benchmarks.gpu.place import Place

_BATCHES = 5


def seconds_each(
    place: Place, call: Callable[[int], object], calls: int, warm_up: int = 3
) -> float:
    """Return the median over batches of the seconds of a call.

    call: gets a number that goes on counting, by which it can choose among buffers.
    """
    for number in range(warm_up):
        call(number)
    batch = _cuda_batch if place.gpu else _cpu_batch
    return statistics.median(batch(call, calls) for _ in range(_BATCHES))


def _cuda_batch(call: Callable[[int], object], calls: int) -> float:
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for number in range(calls):
        call(number)
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / calls


def _cpu_batch(call: Callable[[int], object], calls: int) -> float:
    begin = time.perf_counter()
    for number in range(calls):
        call(number)
    return (time.perf_counter() - begin) / calls
