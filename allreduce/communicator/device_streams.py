"""The device runtime of this process, and the streams of a communicator."""

from __future__ import annotations

import os

from allreduce import _C, cuda
from allreduce.communicator.device_arrays import RUNTIME_VARIABLE, DeviceArray
from allreduce.errors import UsageError


def runtime() -> _C.DeviceRuntime:
    """Return what drives the GPUs; by ALLREDUCE_DEVICE_RUNTIME=cpu the CPU in their place.

    With "-callbacks" behind it, without stream memory operations.

    Raises:
        UsageError: there is no usable GPU; the text says why.
    """
    name = os.environ.get(RUNTIME_VARIABLE, "cuda")
    if name in ("cpu", "cpu-callbacks"):
        return _C.cpu_device_runtime(callbacks=name == "cpu-callbacks")
    if name not in ("cuda", "cuda-callbacks"):
        known = "cuda, cuda-callbacks, cpu or cpu-callbacks"
        raise UsageError(f"{RUNTIME_VARIABLE}={name}: must be {known}")
    found: _C.DeviceRuntime = cuda.runtime(callbacks=name == "cuda-callbacks")
    return found


def capsule() -> object:
    """Return `runtime()` as the torch backend takes it."""
    return runtime().capsule()


class DeviceStreams:
    """The pair of streams that a communicator has on each device, made when first needed."""

    def __init__(self) -> None:
        self._runtime: _C.DeviceRuntime | None = None
        self._pairs: dict[int, tuple[int, int]] = {}

    def place(self, array: DeviceArray) -> _C.DevicePlace:
        """Say where a call on an array comes from, and which streams it takes."""
        found, device = self.locate(array)
        if device not in self._pairs:
            self._pairs[device] = (found.create_stream(device), found.create_stream(device))
        in_, out = self._pairs[device]
        return _C.DevicePlace(runtime=found, device=device, caller=array.stream, in_=in_, out=out)

    def locate(self, array: DeviceArray | int) -> tuple[_C.DeviceRuntime, int]:
        """Return the runtime, and the index of the device that an array lies on."""
        if self._runtime is None:
            self._runtime = runtime()
        device = array if isinstance(array, int) else array.device
        if device is None:
            assert not isinstance(array, int)
            device = self._runtime.device_of(array.address)
        return self._runtime, device

    def close(self) -> None:
        """Give the streams back; what is enqueued on them still runs."""
        if self._runtime is None:
            return
        for pair in self._pairs.values():
            for stream in pair:
                self._runtime.destroy_stream(stream)
        self._pairs.clear()
