"""The collectives that a benchmark measures: their buffers, the call, and what must come out.

Sizes are as in nccl-tests: of the whole buffer, which reduce_scatter, allgather, gather, scatter
and alltoall split over the ranks, `count` elements each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from allreduce import _C
from allreduce import _bench_values as values
from allreduce._arrays import Memory, itemsize
from allreduce._bench_values import Array

if TYPE_CHECKING:
    from allreduce.communicator import Communicator


def _once(ranks: int) -> float:
    return 1.0


def _but_own(ranks: int) -> float:
    return (ranks - 1) / ranks


def _twice(ranks: int) -> float:
    return 2 * (ranks - 1) / ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What sets a collective apart. `factor` of the number of ranks is busbw / algbw."""

    factor: Callable[[int], float]
    reduces: bool = False
    rooted: bool = False
    parts: bool = False  # the buffer is split over the ranks
    input: bool = False  # it is read from a buffer of its own


KINDS = {
    "allreduce": Kind(factor=_twice, reduces=True),
    "reduce_scatter": Kind(factor=_but_own, reduces=True, parts=True),
    "allgather": Kind(factor=_but_own, parts=True),
    "broadcast": Kind(factor=_once, rooted=True),
    "reduce": Kind(factor=_once, reduces=True, rooted=True),
    "gather": Kind(factor=_but_own, rooted=True, parts=True),
    "scatter": Kind(factor=_but_own, rooted=True, parts=True),
    "alltoall": Kind(factor=_but_own, parts=True, input=True),
    "sendrecv": Kind(factor=_once, input=True),
}


@dataclass(frozen=True, slots=True)
class _Span:
    """Elements [lo, hi) of a buffer, and the pattern that fills them."""

    lo: int
    hi: int
    pattern: Array


class Case:
    """One collective of one size on one rank: everything that a row of the table needs.

    buffer, input: at least `nbytes_of` bytes each, as uint8; input where the kind has one.
    """

    def __init__(
        self,
        comm: Communicator,
        collective: str,
        *,
        nbytes: int,
        dtype: str,
        op: str,
        root: int,
        algorithm: str,
        buffer: Array,
        input: Array,
    ) -> None:
        self.kind = KINDS[collective]
        self.nbytes = nbytes_of(collective, nbytes, dtype, comm.world_size)
        self._comm, self._collective = comm, collective
        self._dtype, self._op, self._root = dtype, op, root
        elements = self.nbytes // itemsize(dtype)
        self.count = elements // comm.world_size if self.kind.parts else elements
        self._data = buffer[: self.nbytes].view(values.storage(dtype))
        self._input = input[: self.nbytes].view(values.storage(dtype))
        self.call = self._exchange() if collective == "sendrecv" else self._bound(algorithm)

    def prepare(self, salt: int) -> None:
        """Fill the buffers for a call that is checked; what is no input holds garbage."""
        self._data.view(np.uint8).fill(0x55)
        target = self._input if self.kind.input else self._data
        for span in self._inputs(salt):
            values.fill(target[span.lo : span.hi], span.pattern)

    def clear(self) -> None:
        """Fill the buffers with zeros, which no call changes."""
        self._data.fill(0)
        self._input.fill(0)

    def count_wrong(self, salt: int) -> int:
        """Return how many elements of this rank's result are wrong, after `prepare` and `call`."""
        return sum(
            values.count_wrong(self._data[span.lo : span.hi], span.pattern)
            for span in self._results(salt)
        )

    def _bound(self, algorithm: str) -> Callable[[], None]:
        """Return the core's call with its arguments, as torch's calls make it."""
        comm = self._comm
        call = comm._call(
            _C.Collective.__members__[self._collective],
            Memory(self._data.ctypes.data, self._data.size, self._dtype, self._data),
            op=self._op if self.kind.reduces else "sum",
            root=self._root if self.kind.rooted else 0,
            algo=algorithm,
        )
        if self.kind.input:
            call |= {"input": self._input.ctypes.data, "input_count": self._input.size}
        run = comm._group.run
        return lambda: run(**call)

    def _exchange(self) -> Callable[[], None]:
        """Return the call that sends to the next rank while it receives from the one before."""
        comm = self._comm
        after, before = (comm.rank + 1) % comm.world_size, (comm.rank - 1) % comm.world_size

        def begin(peer: int, array: Array, *, send: bool) -> _C.Work:
            return comm._group.transfer(
                send=send,
                peer=peer,
                tag=0,
                address=array.ctypes.data,
                count=array.size,
                dtype=self._dtype,
                timeout=-1.0,
                wait=send,
            )

        def call() -> None:
            received = begin(before, self._data, send=False)
            begin(after, self._input, send=True)
            comm._group.wait(received, -1.0)

        return call

    def _inputs(self, salt: int) -> list[_Span]:
        comm, n = self._comm, self.count
        me, ranks, root, dtype = comm.rank, comm.world_size, self._root, self._dtype
        if self.kind.reduces:
            pattern = values.contribution(self._op, dtype, me, ranks, salt)
            return [_Span(0, self._data.size, pattern)]
        if self._collective in ("allgather", "gather"):
            return [_Span(me * n, me * n + n, values.moved(dtype, me, 0, salt))]
        if self.kind.rooted and me != root:
            return []
        parts = range(ranks) if self.kind.parts else [0]
        return [_Span(r * n, r * n + n, values.moved(dtype, me, r, salt)) for r in parts]

    def _results(self, salt: int) -> list[_Span]:
        comm, n = self._comm, self.count
        me, ranks, root, dtype = comm.rank, comm.world_size, self._root, self._dtype
        if self._collective in ("reduce", "gather") and me != root:
            return []
        if self.kind.reduces:
            pattern = values.reduced(self._op, dtype, ranks, salt)
            if not self.kind.parts:
                return [_Span(0, n, pattern)]
            return [_Span(me * n, me * n + n, np.roll(pattern, -me * n))]
        if self._collective == "broadcast":
            return [_Span(0, n, values.moved(dtype, root, 0, salt))]
        if self._collective == "scatter":
            return [_Span(me * n, me * n + n, values.moved(dtype, root, me, salt))]
        if self._collective == "sendrecv":
            return [_Span(0, n, values.moved(dtype, (me - 1) % ranks, 0, salt))]
        part = me if self._collective == "alltoall" else 0
        return [_Span(r * n, r * n + n, values.moved(dtype, r, part, salt)) for r in range(ranks)]


def nbytes_of(collective: str, nbytes: int, dtype: str, ranks: int) -> int:
    """Return the bytes of the buffer for about `nbytes`: whole elements, as many on each rank."""
    unit = itemsize(dtype) * (ranks if KINDS[collective].parts else 1)
    return max(1, nbytes // unit) * unit
