"""Arrays in device memory for a rank: torch's or CuPy's on a GPU, else the CPU runtime's."""

from __future__ import annotations

from typing import Any

import numpy as np

from allreduce.communicator import device_streams

Array = np.ndarray[Any, Any]


class GpuMemory:
    """Tensors on torch's current stream."""

    def __init__(self) -> None:
        import torch

        self._torch = torch
        torch.cuda.set_device(0)

    def array(self, values: Array) -> Any:
        """An array that is filled in stream order."""
        return self._torch.from_numpy(values).cuda(non_blocking=True)

    def read(self, array: Any) -> Array:
        """What it holds behind all that is enqueued."""
        values: Array = array.cpu().numpy()
        return values

    def synchronize(self) -> None:
        """Wait for all that is enqueued."""
        self._torch.cuda.synchronize()


class CupyMemory:
    """Arrays of CuPy on its current stream."""

    def __init__(self) -> None:
        import cupy

        self._cupy = cupy
        cupy.cuda.Device(0).use()

    def array(self, values: Array) -> Any:
        """An array that is filled in stream order."""
        return self._cupy.asarray(values)

    def read(self, array: Any) -> Array:
        """What it holds behind all that is enqueued."""
        values: Array = self._cupy.asnumpy(array)
        return values

    def synchronize(self) -> None:
        """Wait for all that is enqueued."""
        self._cupy.cuda.runtime.deviceSynchronize()


class CpuArray:
    """As CuPy's arrays show themselves. Its memory may be touched by its stream alone."""

    def __init__(self, memory: Array, stream: int) -> None:
        self.memory, self.shape = memory, memory.shape
        self.__cuda_array_interface__ = {
            "shape": memory.shape,
            "typestr": memory.dtype.str,
            "data": (memory.ctypes.data, False),
            "version": 3,
            "strides": None,
            "stream": stream,
        }


class CpuMemory:
    """Host memory that one stream of the CPU runtime alone may touch."""

    def __init__(self) -> None:
        self._runtime = device_streams.runtime()
        self._stream = self._runtime.create_stream(0)
        self._kept: list[Array] = []  # what copies under way read

    def array(self, values: Array) -> CpuArray:
        """An array that is filled in stream order."""
        array = CpuArray(np.full_like(values, 99), self._stream)
        self._copy(array.memory, values)
        return array

    def read(self, array: CpuArray) -> Array:
        """What it holds behind all that is enqueued."""
        values = np.empty_like(array.memory)
        self._copy(values, array.memory)
        self.synchronize()
        return values

    def synchronize(self) -> None:
        """Wait for all that is enqueued."""
        self._runtime.synchronize(0, self._stream)
        self._kept.clear()

    def _copy(self, to: Array, source: Array) -> None:
        self._kept += [to, source]
        self._runtime.copy(to.ctypes.data, source.ctypes.data, source.nbytes, self._stream)


def memory_on(device: str, library: str = "torch") -> GpuMemory | CupyMemory | CpuMemory:
    """By torch's name of the device; on a GPU, of "torch" or "cupy"."""
    if device != "cuda":
        return CpuMemory()
    return CupyMemory() if library == "cupy" else GpuMemory()
