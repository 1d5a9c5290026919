"""Section: how fast memory can be copied, on the device and between it and the host."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from allreduce import _C
from allreduce.communicator import device_streams
from benchmarks.gpu.place import CPU_RUNTIME, Place
from benchmarks.gpu.rows import Rows
from benchmarks.gpu.timing import seconds_each

_BATCHES = 5
_COPIES = 8  # in a batch


def run(rows: Rows) -> None:
    """Copies through the device runtime, as the device stage makes them."""
    nbytes = 1 << 22 if rows.quick else 1 << 24 if rows.small else 1 << 28
    runtime = device_streams.runtime()
    on = rows.place.on(CPU_RUNTIME)
    if rows.place.gpu:
        rate = copy_rate(rows.place, nbytes)
        rows.add("torch's copy_ on the device", rate, "GB/s", on=on, note="bytes read and written")
    arrays = [_memory(rows.place, nbytes) for _ in range(4)]
    addresses = [address for address, _ in arrays]
    pinned = runtime.allocate_pinned(nbytes)
    stream = runtime.create_stream(0)
    try:
        pairs = {  # the first goes past the L2 cache by turns between two pairs of arrays
            "device to device": (2, [(addresses[0], addresses[1]), (addresses[2], addresses[3])]),
            "pinned to device": (1, [(addresses[0], pinned)]),
            "device to pinned": (1, [(pinned, addresses[0])]),
        }
        for name, (passes, ways) in pairs.items():
            seconds = _seconds(runtime, stream, ways, nbytes)
            note = f"{nbytes >> 20} MiB" + (", bytes read and written" if passes == 2 else "")
            rows.add(name, passes * nbytes / seconds / 1e9, "GB/s", on=on, note=note)
    finally:
        runtime.synchronize(0, stream)
        runtime.destroy_stream(stream)
        runtime.free_pinned(pinned)


def copy_rate(place: Place, nbytes: int) -> float:
    """GB/s, read and written, of torch's copies between two pairs of arrays by turns."""
    import torch

    pairs = [[torch.zeros(nbytes // 4, device=place.device) for _ in range(2)] for _ in range(2)]
    call: Callable[[int], Any] = lambda number: pairs[number % 2][0].copy_(pairs[number % 2][1])  # noqa: E731
    return 2 * nbytes / seconds_each(place, call, calls=_COPIES) / 1e9


def _memory(place: Place, nbytes: int) -> tuple[int, Any]:
    """Device memory: its address, and what keeps it."""
    if place.gpu:
        import torch

        tensor = torch.zeros(nbytes, dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()
        return tensor.data_ptr(), tensor
    import numpy as np

    array = np.zeros(nbytes, np.uint8)
    return array.ctypes.data, array


def _seconds(
    runtime: _C.DeviceRuntime, stream: int, ways: list[tuple[int, int]], nbytes: int
) -> float:
    """Of one copy, in batches on a stream that is not torch's: by this process's clock."""
    taken = []
    for _ in range(_BATCHES + 1):
        begin = time.perf_counter()
        for number in range(_COPIES):
            runtime.copy(*ways[number % len(ways)], nbytes, stream)
        runtime.synchronize(0, stream)
        taken.append((time.perf_counter() - begin) / _COPIES)
    return statistics.median(taken[1:])
