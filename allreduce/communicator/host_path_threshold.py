"""Up to how many bytes the CPU sums a node's GPU buffers faster than the GPUs among themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from allreduce import _C
from allreduce.communicator.arrays import ArrayView
from allreduce.communicator.device_arrays import DeviceArray
from allreduce.tuning.timing import TimeBudget, time_alternating

if TYPE_CHECKING:
    from allreduce.communicator.communicator import Communicator

__all__ = ["tune_host_path"]

_SIZES = tuple(1 << power for power in (16, 18, 20, 22))  # bytes
_EFFORT = TimeBudget(seconds=0.02, least_turns=2, most_turns=8)


def tune_host_path(comm: Communicator, runtime: _C.DeviceRuntime, device: int) -> None:
    """Time both ways, size by size, and have the host's taken as far up as it is the faster.

    All ranks call it at once, with a device stage in place; it takes about a tenth of a second.
    """
    limit = 0
    buffer = runtime.allocate(device, _SIZES[-1])
    stream = runtime.create_stream(device)
    try:
        zeros = np.zeros(_SIZES[-1], np.uint8)
        runtime.copy(buffer, zeros.ctypes.data, zeros.nbytes, stream)
        runtime.synchronize(device, stream)
        for nbytes in _SIZES:
            array = DeviceArray(buffer, (nbytes // 4,), "float32", device, stream, None)
            memory = ArrayView(buffer, nbytes // 4, "float32", None, array)

            def call(most: int, memory: ArrayView = memory) -> None:
                comm._group.set_host_path_bytes(most)
                comm._group.run(**comm._call(_C.Collective.allreduce, memory))
                runtime.synchronize(device, stream)

            seconds, _ = time_alternating(
                comm, {"host": lambda: call(_SIZES[-1]), "devices": lambda: call(0)}, _EFFORT
            )
            if seconds["host"] >= seconds["devices"]:
                break
            limit = nbytes
    finally:
        runtime.destroy_stream(stream)
        runtime.free(buffer)
    comm._group.set_host_path_bytes(limit)
