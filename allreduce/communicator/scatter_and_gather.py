"""Collectives of a communicator in which each rank has a part of an array."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import prod
from typing import Any, TypeVar

import numpy as np

from allreduce import _C
from allreduce.communicator.arrays import copy_of, memory_of
from allreduce.communicator.collective_base import Algorithm, Array, CollectiveBase
from allreduce.communicator.types import ReduceOp
from allreduce.errors import UsageError

T = TypeVar("T")


class PartCollectives(CollectiveBase):
    """Collectives in which each rank has a part: rows of an array, along its first dimension.

    `rows` says how many rows each rank has where these are not the same for all; every rank gives
    the same list of world_size numbers.
    """

    def reduce_scatter(
        self,
        x: T,
        op: ReduceOp = "sum",
        algo: Algorithm = "auto",
        *,
        rows: Sequence[int] | None = None,
        in_place: bool = False,
        timeout: float | None = None,
        name: str = "",
    ) -> T:
        """Reduce `x` over all ranks and return this rank's part of the result.

        Args:
            x: shape (world_size * n, ...), or (sum(rows), ...); it is not changed.
            in_place: `x` is changed: this rank's rows become the result, all others any numbers. In
                symmetric memory on one node see `symmetric_empty`; `algo` changes nothing there.
            name: checked to be the same on all ranks.

        Returns:
            A new array of shape (n, ...), this rank's rows: a tensor for a tensor, else NumPy's.
            In place, the rows of `x`.
        """
        if not in_place:
            self._settle(x)
        # The reduction happens in this array.
        whole = memory_of(x, "x", self.rank).owner if in_place else copy_of(x, "x", self.rank)
        parts = self._parts(whole, rows, "rows")
        memory = memory_of(whole, "x", self.rank)
        call = self._call(
            _C.Collective.reduce_scatter, memory, op=op, algo=algo, timeout=timeout, name=name
        )
        self._group.run(**call, bounds=_elements(whole, parts))
        mine: T = whole[parts[self.rank] : parts[self.rank + 1]]
        if in_place:
            return mine
        own: T = copy_of(mine, "x", self.rank)
        return own

    def allgather(
        self,
        x: Array,
        algo: Algorithm = "auto",
        *,
        rows: Sequence[int] | None = None,
        in_place: bool = False,
        timeout: float | None = None,
    ) -> Array:
        """Return the arrays of all ranks, joined along the first dimension in rank order.

        Args:
            x: shape (n, ...), or a scalar; the same shape on all ranks, but for `rows`.
            in_place: `x` has the shape of the result, and this rank's rows in their place there. In
                symmetric memory on one node see `symmetric_empty`; `algo` changes nothing there.

        Returns:
            A new array of shape (world_size * n, ...): a tensor for a tensor, else NumPy's. In
            place, `x`.
        """
        if in_place:
            whole = memory_of(x, "x", self.rank)
            bounds = _elements(whole.owner, self._parts(whole.owner, rows, "rows"))
            call = self._call(_C.Collective.allgather, whole, algo=algo, timeout=timeout)
            self._group.run(**call, bounds=bounds)
            return x
        return self._joined(_C.Collective.allgather, x, 0, algo, rows, timeout)

    def gather(
        self,
        x: Array,
        root: int = 0,
        algo: Algorithm = "auto",
        *,
        rows: Sequence[int] | None = None,
        timeout: float | None = None,
    ) -> Array | None:
        """Return the arrays of all ranks, joined as by `allgather`, on `root`; None elsewhere."""
        joined = self._joined(_C.Collective.gather, x, root, algo, rows, timeout)
        return joined if self.rank == root else None

    def scatter(
        self,
        out: Array,
        x: Array | None = None,
        root: int = 0,
        algo: Algorithm = "auto",
        *,
        rows: Sequence[int] | None = None,
        timeout: float | None = None,
    ) -> Array:
        """Fill `out` with this rank's part of the `x` of `root`, and return it.

        Args:
            out: shape (n, ...), or this rank's of `rows`.
            x: on `root` alone: shape (world_size * n, ...), dtype of `out`.
        """
        target = memory_of(out, "out", self.rank)
        mine = target.owner if target.owner.ndim else target.owner.reshape(1)
        counts = self._rows_of_all(mine, rows)
        parts = [0, *accumulate(counts)]
        whole = _empty(mine, (parts[-1], *mine.shape[1:]))
        if self.rank == root:
            if x is None:
                raise UsageError(f"x on rank {root}: the root of a scatter gives the whole array")
            source = memory_of(x, "x", self.rank, writable=False)
            if source.dtype != target.dtype or tuple(source.owner.shape) != tuple(whole.shape):
                raise UsageError(
                    f"x on rank {root}: is {source.dtype} of shape {tuple(source.owner.shape)}, "
                    f"and out makes it {target.dtype} of shape {tuple(whole.shape)}"
                )
            self._settle(x)
            whole = copy_of(x, "x", self.rank)
        memory = memory_of(whole, "x", self.rank)
        call = self._call(_C.Collective.scatter, memory, root=root, algo=algo, timeout=timeout)
        self._group.run(**call, bounds=_elements(whole, parts))
        self._settle(out)
        mine[...] = whole[parts[self.rank] : parts[self.rank + 1]]
        return out

    def alltoall(
        self,
        x: Array,
        send_rows: Sequence[int] | None = None,
        recv_rows: Sequence[int] | None = None,
        *,
        algo: Algorithm = "auto",
        timeout: float | None = None,
    ) -> Array:
        """Send rank i the i-th part of `x`, and return the parts from all ranks in rank order.

        Args:
            x: shape (world_size * n, ...), or (sum(send_rows), ...).
            send_rows: rows for each rank, where they are not the same for all. All ranks give them,
                or none does.
            recv_rows: rows from each rank. None: they are asked for, if `send_rows` are given.

        Returns:
            A new array of shape (sum of the received rows, ...).
        """
        source = memory_of(x, "x", self.rank, writable=False)
        whole = source.owner
        sent = self._parts(whole, send_rows, "send_rows")
        if send_rows is not None and recv_rows is None:
            recv_rows = self.alltoall(np.array(send_rows, np.int64), timeout=timeout).tolist()
        counts = [sent[1]] * self.world_size if recv_rows is None else list(recv_rows)
        received = [0, *accumulate(self._checked(counts, "recv_rows"))]
        out = _empty(whole, (received[-1], *whole.shape[1:]))
        memory = memory_of(out, "x", self.rank)
        call = self._call(_C.Collective.alltoall, memory, algo=algo, timeout=timeout)
        even = send_rows is None and recv_rows is None
        self._group.run(
            **call,
            bounds=[] if even else _elements(out, received),
            input=source.address,
            input_count=source.count,
            input_bounds=[] if even else _elements(whole, sent),
        )
        return out

    def _joined(
        self,
        collective: _C.Collective,
        x: Array,
        root: int,
        algo: Algorithm,
        rows: Sequence[int] | None,
        timeout: float | None,
    ) -> Array:
        self._settle(x)
        part = memory_of(x, "x", self.rank, writable=False).owner
        part = part if part.ndim else part.reshape(1)
        parts = [0, *accumulate(self._rows_of_all(part, rows))]
        whole = _empty(part, (parts[-1], *part.shape[1:]))
        whole[parts[self.rank] : parts[self.rank + 1]] = part
        memory = memory_of(whole, "x", self.rank)
        call = self._call(collective, memory, root=root, algo=algo, timeout=timeout)
        self._group.run(**call, bounds=_elements(whole, parts))
        return whole

    def _rows_of_all(self, mine: Array, rows: Sequence[int] | None) -> list[int]:
        """How many rows each rank has, of which this one has `mine`."""
        if rows is None:
            return [int(mine.shape[0])] * self.world_size
        counts = self._checked(rows, "rows")
        if counts[self.rank] != mine.shape[0]:
            raise UsageError(
                f"rows on rank {self.rank}: give this rank {counts[self.rank]} rows, and its array "
                f"has {mine.shape[0]}"
            )
        return counts

    def _parts(self, whole: Array, rows: Sequence[int] | None, argument: str) -> list[int]:
        """Where each rank's rows of `whole` begin, and the end."""
        total = int(whole.shape[0]) if whole.ndim else -1
        if rows is None:
            if total < 0 or total % self.world_size:
                raise UsageError(
                    f"x on rank {self.rank}: shape {tuple(whole.shape)} does not split over "
                    f"{self.world_size} ranks along its first dimension; pad it, or give {argument}"
                )
            return [total // self.world_size * r for r in range(self.world_size + 1)]
        parts = [0, *accumulate(self._checked(rows, argument))]
        if parts[-1] != total:
            raise UsageError(
                f"{argument} on rank {self.rank}: add up to {parts[-1]}, and x has shape "
                f"{tuple(whole.shape)}"
            )
        return parts

    def _checked(self, rows: Sequence[int], argument: str) -> list[int]:
        counts = [int(n) for n in rows]
        if len(counts) != self.world_size or min(counts) < 0:
            raise UsageError(
                f"{argument} on rank {self.rank}: must be {self.world_size} numbers of rows, 0 or "
                f"more, not {counts}"
            )
        return counts


def _elements(array: Array, parts: Sequence[int]) -> list[int]:
    """Bounds in elements of bounds in rows."""
    row = prod(array.shape[1:])
    return [row * begin for begin in parts]


def _empty(like: Array, shape: tuple[int, ...]) -> Any:
    """A new array of the kind and dtype of another."""
    if hasattr(like, "new_empty"):  # torch's
        return like.new_empty(shape)
    return type(like)(shape, like.dtype)  # NumPy's, CuPy's
