"""What every collective of a communicator passes to the core."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable
from numbers import Real
from operator import index
from typing import Any, TypeAlias

import numpy as np

from allreduce import _C
from allreduce.communicator.arrays import ArrayView, memory_of
from allreduce.communicator.device_streams import DeviceStreams
from allreduce.communicator.work import Work
from allreduce.errors import UsageError
from allreduce.schedules.user_schedules import OwnSchedules

# The name of an algorithm or of a schedule that was registered, or a schedule itself.
Algorithm: TypeAlias = str | _C.Schedule
Array = Any  # numpy.ndarray, torch.Tensor, cupy.ndarray, or an object with __dlpack__


class CollectiveBase:
    """The part of a communicator that its collectives and messages stand on."""

    rank: int
    world_size: int
    _group: _C.Group
    _own: OwnSchedules
    _streams: DeviceStreams
    _in_flight: deque[Work]  # keeps arrays alive that the core works on

    def _call(
        self,
        collective: _C.Collective,
        memory: ArrayView,
        *,
        op: str = "sum",
        root: int = 0,
        algo: Algorithm = "auto",
        timeout: float | None = None,
        name: str = "",
    ) -> dict[str, Any]:
        try:
            root = index(root)
        except TypeError:
            raise UsageError(f"root on rank {self.rank}: must be a rank, not {root!r}") from None
        algo = self._own.name_of(algo, collective, root)
        self._check_words(op=op, algo=algo, name=name)
        return {
            "collective": collective,
            "address": memory.address,
            "count": memory.count,
            "dtype": memory.dtype,
            "op": op,
            "root": root,
            "algorithm": algo,
            "timeout": seconds(timeout),
            "name_hash": zlib.crc32(name.encode()),
            "device": self._streams.place(memory.device) if memory.device else None,
            "shape": memory.shape,
        }

    def _bound(
        self,
        collective: _C.Collective,
        data: np.ndarray[Any, Any],
        dtype: str,
        *,
        input: np.ndarray[Any, Any] | None = None,
        **options: Any,
    ) -> Callable[[], None]:
        """Return the core's blocking call with its arguments, to be made again and again."""
        memory = ArrayView(data.ctypes.data, data.size, dtype, data)
        call = self._call(collective, memory, **options)
        if input is not None:
            call |= {"input": input.ctypes.data, "input_count": input.size}
        run = self._group.run
        return lambda: run(**call)

    def _check_words(self, **words: object) -> None:
        for argument, value in words.items():
            if not isinstance(value, str):
                raise UsageError(f"{argument} on rank {self.rank}: must be a string, not {value!r}")

    def _settle(self, x: Array) -> None:
        """Wait for this rank's earlier calls on the memory of `x`, which is about to be copied."""
        if self._in_flight:
            memory = memory_of(x, "x", self.rank, writable=False)
            self._group.settle(memory.address, memory.nbytes)

    def _keep(self, work: Work) -> Work:
        while self._in_flight and self._in_flight[0].done():
            self._in_flight.popleft()
        self._in_flight.append(work)
        return work


def seconds(timeout: float | None) -> float:
    """Return a timeout as the core takes it, where a negative one is the group's."""
    if timeout is None:
        return -1.0
    value: Any = timeout  # whatever it is that callers pass
    if not isinstance(value, Real) or not float(value) > 0:
        raise UsageError(f"timeout={timeout!r}: must be a positive number of seconds")
    return float(value)
