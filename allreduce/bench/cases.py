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
from allreduce.bench import expected_values as values
from allreduce.bench.expected_values import Array
from allreduce.communicator.arrays import itemsize

if TYPE_CHECKING:
    from allreduce.communicator.communicator import Communicator


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What sets a collective apart, in nccl-tests' terms."""

    reduces: bool = False
    rooted: bool = False
    parts: bool = False  # the buffer is split over the ranks
    input: bool = False  # it is read from a buffer of its own
    twice: bool = False  # each byte crosses the busiest link twice: to be summed, and back

    def factor(self, ranks: int) -> float:
        """Return busbw / algbw among so many ranks."""
        but_own = (ranks - 1) / ranks
        return 2 * but_own if self.twice else but_own if self.parts else 1.0


def _kind(what: _C.Collective) -> Kind:
    parts = what.chunks != _C.Chunks.any
    return Kind(
        reduces=what.reduces,
        rooted=what.rooted,
        parts=parts,
        input=what.chunks == _C.Chunks.per_pair,
        twice=what.reduces and not what.rooted and not parts,
    )


KINDS = {
    name: _kind(what) for name, what in _C.Collective.__members__.items() if name != "barrier"
} | {"sendrecv": Kind(input=True)}


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
        self._what = _C.Collective.__members__.get(collective)  # None: a message
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
        return self._comm._bound(
            _C.Collective.__members__[self._collective],
            self._data,
            self._dtype,
            input=self._input if self.kind.input else None,
            op=self._op if self.kind.reduces else "sum",
            root=self._root if self.kind.rooted else 0,
            algo=algorithm,
        )

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
        comm = self._comm
        if self.kind.reduces:
            pattern = values.contribution(self._op, self._dtype, comm.rank, comm.world_size, salt)
            return [_Span(0, self._data.size, pattern)]
        if self._what is None:  # of a message
            return [self._span(0, comm.rank, 0, salt)]
        # A chunk per pair lies at its target's place in the input.
        return [
            self._span(chunk % comm.world_size, self._source(chunk), chunk, salt)
            for chunk in self._chunks(self._what.starts_with)
        ]

    def _results(self, salt: int) -> list[_Span]:
        comm, n = self._comm, self.count
        if self._what is None:
            return [self._span(0, (comm.rank - 1) % comm.world_size, 0, salt)]
        chunks = self._chunks(self._what.ends_with)
        if self.kind.reduces:
            pattern = values.reduced(self._op, self._dtype, comm.world_size, salt)
            return [_Span(c * n, c * n + n, np.roll(pattern, -c * n)) for c in chunks]
        # And at its source's place in the output.
        places = [self._source(c) if self.kind.input else c for c in chunks]
        return [
            self._span(place, self._source(c), c, salt)
            for place, c in zip(places, chunks, strict=True)
        ]

    def _chunks(self, holds: Callable[[int, int, int, int], bool]) -> list[int]:
        """Return the chunks that this rank holds."""
        comm = self._comm
        ranks = comm.world_size if self.kind.parts else 1
        many = ranks * ranks if self.kind.input else ranks
        return [c for c in range(many) if holds(comm.rank, c, self._root, comm.world_size)]

    def _source(self, chunk: int) -> int:
        assert self._what is not None
        return self._what.source_of(chunk, self._root, self._comm.world_size)

    def _span(self, place: int, source: int, part: int, salt: int) -> _Span:
        """Return the part of a buffer at `place`, which `source` fills."""
        n = self.count
        return _Span(place * n, place * n + n, values.moved(self._dtype, source, part, salt))


def nbytes_of(collective: str, nbytes: int, dtype: str, ranks: int) -> int:
    """Return the bytes of the buffer for about `nbytes`: whole elements, as many on each rank."""
    unit = itemsize(dtype) * (ranks if KINDS[collective].parts else 1)
    return max(1, nbytes // unit) * unit
