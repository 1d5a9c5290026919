"""The size of buckets by the model of communication and the measured backward pass: "auto"."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from allreduce.torch.ddp import buckets

if TYPE_CHECKING:
    from allreduce.communicator.communicator import Communicator

__all__ = ["AUTO", "DEFAULT", "BucketBytes", "Profile", "agree", "choose"]

BucketBytes: TypeAlias = int | Literal["auto"]

AUTO: Literal["auto"] = "auto"
DEFAULT = 4 << 20  # bytes; also where nothing is known yet, or nothing is better
_LEAST = 256 << 10
_PASSES = 3  # backward passes that are measured: the first also warms up, the least time counts
_BETTER = 0.98  # of the time with the default: less is noise
_TRIES = 20


class Profile:
    """When each gradient was ready in the first backward passes, in seconds from their begin."""

    def __init__(self, count: int) -> None:
        self.seconds = np.full(count, np.inf)
        self._passes = 0
        self._now = np.full(count, np.nan)
        self._begun = 0.0

    @property
    def complete(self) -> bool:
        """Whether enough passes were measured."""
        return self._passes >= _PASSES

    def begin(self) -> None:
        """A backward pass begins."""
        self._begun = time.perf_counter()
        self._now[:] = np.nan

    def ready(self, index: int) -> None:
        """The gradient of a parameter has come."""
        self._now[index] = time.perf_counter() - self._begun

    def end(self) -> None:
        """The pass ends: a gradient that has not come counts as ready now."""
        end = time.perf_counter() - self._begun
        np.minimum(self.seconds, np.where(np.isnan(self._now), end, self._now), out=self.seconds)
        self._passes += 1


def agree(
    comm: Communicator,
    parameters: Sequence[Tensor],
    order: Sequence[int],
    profile: Profile,
    wire_dtype: torch.dtype | None = None,
) -> int:
    """Return the best size of buckets in bytes, the same on all ranks, each of which calls it."""
    ready = profile.seconds.copy()
    comm.allreduce(ready, "max")  # a reduction waits for the last rank
    each = _seconds_of_a_small_call(comm)
    smallest = comm.predict(4)
    best = np.array([DEFAULT])
    if smallest is not None:
        least = smallest

        def seconds(nbytes: int) -> float:
            return each + max(0.0, (comm.predict(nbytes) or 0.0) - least)

        # Ranks of one machine reduce by its cores alone, and all of those compute already.
        alone = comm._connections.ranks_on_host == comm.world_size
        busy = alone and comm.layout.ranks_per_core * torch.get_num_threads() >= 1
        best[0] = choose(parameters, order, ready, seconds, busy=busy, wire_dtype=wire_dtype)
    comm.broadcast(best, root=0)
    return int(best[0])


def choose(
    parameters: Sequence[Tensor],
    order: Sequence[int],
    ready: npt.NDArray[np.float64],
    seconds: Callable[[int], float],
    *,
    busy: bool,
    wire_dtype: torch.dtype | None = None,
) -> int:
    """Return the size of buckets with which a backward pass ends first.

    Buckets are reduced one after the other, each once it is complete.

    Args:
        order: parameters as their gradients come.
        ready: seconds after the begin of the pass, by parameter.
        seconds: of the reduction of so many bytes.
        wire_dtype: of the buckets of float32 gradients, if it is another.
        busy: what runs beside backprop takes its time from it, so that nothing is hidden: the
            pass ends first with the reductions that take least in all.
    """

    nbytes = [p.numel() * buckets.travels_as(p, wire_dtype).itemsize for p in parameters]

    def cost(bucket_bytes: int) -> float:
        end = total = 0.0
        for members in buckets.plan(parameters, order, bucket_bytes, wire_dtype):
            taken = seconds(sum(nbytes[i] for i in members))
            end = max(end, max(ready[i] for i in members)) + taken
            total += taken
        return total if busy else end

    whole = sum(nbytes)
    sizes = [_LEAST << k for k in range(64) if _LEAST << k < 2 * max(whole, _LEAST)]
    best = min(sizes, key=cost)
    return best if cost(best) < _BETTER * cost(DEFAULT) else DEFAULT


def _seconds_of_a_small_call(comm: Communicator) -> float:
    """Return what a bucket takes however small it is: the hand-over to the worker is in it."""
    one = np.zeros(1, np.float32)
    times = []
    for _ in range(_TRIES):
        begin = time.perf_counter()
        comm.allreduce(one, async_op=True).wait()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))
