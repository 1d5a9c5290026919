"""Arrays in the memory of the CPU runtime's device, for tests of the device stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from allreduce import _C
from benchmarks.gpu.memory import CpuArray


class Device:
    """A stream of the CPU runtime, and arrays that are filled and read on it alone."""

    def __init__(self) -> None:
        self.runtime = _C.cpu_device_runtime()
        self.stream = self.runtime.create_stream(0)
        self._kept: list[np.ndarray] = []  # what copies under way read and write

    def synchronize(self) -> None:
        self.runtime.synchronize(0, self.stream)
        self._kept.clear()

    def array(self, values: np.ndarray, offset: int = 0) -> CpuArray:
        """Enqueue: an array, `offset` bytes behind an aligned place, is filled with the values."""
        raw = np.full(values.nbytes + offset, 99, np.uint8)
        memory = raw[offset:].view(values.dtype).reshape(values.shape)
        array = CpuArray(memory, self.stream)
        self.copy(memory, np.ascontiguousarray(values))
        return array

    def hold(self) -> np.ndarray:
        """Enqueue a wait until the element that is returned has been set to 1."""
        flag = np.zeros(1, np.uint32)
        self._kept.append(flag)
        self.runtime.wait_flag(flag.ctypes.data, 1, self.stream)
        return flag

    def busy(self, megabytes: int = 100) -> None:
        """Enqueue something that takes a while."""
        scratch = np.zeros((2, 1 << 23), np.uint8)
        for _ in range(megabytes >> 4):
            self.copy(scratch[0], scratch[1])

    def copy(self, to: np.ndarray, source: np.ndarray) -> None:
        self._kept += [to, source]
        self.runtime.copy(to.ctypes.data, source.ctypes.data, source.nbytes, self.stream)

    def read(self, array: CpuArray) -> np.ndarray:
        """What the array holds behind all that is enqueued."""
        result = np.empty_like(array.memory)
        self.copy(result, array.memory)
        self.synchronize()
        return result


@contextmanager
def a_device() -> Iterator[Device]:
    device = Device()
    try:
        yield device
    finally:
        device.synchronize()
        device.runtime.destroy_stream(device.stream)
