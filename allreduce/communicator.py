"""Communicators: collectives on NumPy arrays and torch CPU tensors."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np

from allreduce import _C, _lifetime, _measure, cost
from allreduce._arrays import copy_of, itemsize, memory_of
from allreduce._calls import Array, seconds
from allreduce._mesh import Wiring, connect
from allreduce._messages import PointToPoint
from allreduce._nodes import NodesOption
from allreduce._parts import PartCollectives
from allreduce._store import PrefixStore, Store
from allreduce._symmetric import symmetric_empty
from allreduce._work import Work, make_group
from allreduce.errors import UsageError

__all__ = ["Communicator"]

log = logging.getLogger("allreduce")

_LOCAL_FORMS = ("rs_ag", "reduce_bcast", "none")


class Communicator(PartCollectives, PointToPoint):
    """A group of ranks and its collectives. Every rank makes the same calls in the same order.

    Arrays are contiguous, in host memory, of dtype float64, float32, float16, bfloat16 (torch),
    int64, int32, int16, int8, uint8 or bool. Reductions are `sum`, `avg` (floats), `min`, `max`,
    `prod`, and `band`, `bor`, `bxor` (integers and bool).

    Errors of every collective: `UsageError` (an argument cannot work), `MismatchError` (ranks
    disagree), `PeerError` (a rank died or left), `Timeout`, `AbortedError` (the group has failed
    before). After any but the first the group is poisoned, on all ranks.
    """

    def __init__(self, wiring: Wiring, store: Store, options: dict[str, Any]) -> None:
        """Use `init` or `Communicator.from_store`."""
        self._wiring = wiring
        self._store = store
        self._options = options
        self._splits = 0
        self.hierarchical: bool = options["local"] != "none"
        self.link: cost.Link | None = options["link"]
        self._in_flight: deque[Work] = deque()
        self._group = make_group(wiring, options)
        self.rank = wiring.rank
        self.world_size = wiring.world_size
        self.node_of_rank = tuple(wiring.node_of_rank)
        self.node = wiring.node_of_rank[wiring.rank]
        self.num_nodes = max(wiring.node_of_rank) + 1
        self.local_rank = wiring.local_ranks.index(wiring.rank)
        self.local_size = len(wiring.local_ranks)
        self.congestion = wiring.congestion
        _lifetime.add(self)
        if self.link is None and options["measure"] and self._ranks_of_schedules() > 1:
            self.link = _measure.measure(self)
        if self.link is not None:
            rows = cost.crossovers(self._ranks_of_schedules(), self.link)
            log.debug("%s; %s", self.link, rows)
            self._group.set_choices([(_C.Collective.allreduce, size, name) for size, name in rows])

    @classmethod
    def from_store(
        cls,
        store: Store,
        rank: int,
        world_size: int,
        *,
        timeout: float = 300.0,
        generation: int = 0,
        nodes: NodesOption = None,
        local: str = "rs_ag",
        rails: int = 0,
        lanes: int = 2,
        segment_bytes: int = 256 << 10,
        measure: bool = True,
        link: cost.Link | None = None,
    ) -> Communicator:
        """Connect this rank with all others over a store (torch's work as they are).

        Args:
            timeout: seconds for the start and for each collective.
            generation: of a group that is built again on the same store; higher each time.
            nodes: None (ranks of one host form a node), a number of nodes to split the ranks into,
                or the node of each rank. `ALLREDUCE_NODES` where None.
            local: "rs_ag" (reduce-scatter, allgather inside a node), "reduce_bcast" (the paper's
                own form: sum to one buffer per node, broadcast), or "none" (no hierarchy).
            rails: how many ranks of a node talk to other nodes at once; 0 for all.
            lanes: independent connections to each peer; as many collectives may be in flight.
            segment_bytes: most bytes that one step of a schedule carries.
            measure: measure the links now, so that `algo="auto"` chooses by them.
            link: what was measured before, say in a larger group of the same machines.

        Raises:
            Timeout, PeerError, UsageError: ranks are missing, died, or disagree.
        """
        _check_options(timeout, local, rails, segment_bytes, generation)
        wiring = connect(
            store,
            rank,
            world_size,
            nodes=nodes,
            lanes=lanes,
            arena_bytes=lambda local_size: _C.arena_bytes(local_size, lanes),
            timeout=timeout,
            generation=generation,
        )
        options = {
            "timeout": timeout,
            "local": local,
            "rails": rails,
            "lanes": lanes,
            "segment_bytes": segment_bytes,
            "measure": measure,
            "link": link,
        }
        return cls(wiring, store, options)

    def allreduce(
        self,
        x: Array,
        op: str = "sum",
        algo: str = "auto",
        async_op: bool = False,
        *,
        timeout: float | None = None,
        name: str = "",
    ) -> Any:
        """Reduce `x` over all ranks, in place and without a copy, on every rank.

        Args:
            x: array of any shape, the same count and dtype on all ranks.
            algo: between nodes: "auto", "halving_doubling", "ring" (alias "bucket"),
                "recursive_doubling", "bcube", "circulant", "direct", "binomial".
            async_op: return a `Work` at once.
            timeout: seconds, in place of the group's.
            name: checked to be the same on all ranks.

        Returns:
            `x`, or a `Work` whose `wait` returns it.
        """
        simple = not async_op and not name
        if simple and self._group.allreduce(x, op, algo, seconds(timeout)):
            return x
        memory = memory_of(x, "x", self.rank)
        call = self._call(
            _C.Collective.allreduce, memory, op=op, algo=algo, timeout=timeout, name=name
        )
        if async_op:
            return self._keep(Work(self._group, self._group.start(**call), x))
        self._group.run(**call)
        return x

    def broadcast(
        self, x: Array, root: int = 0, algo: str = "auto", *, timeout: float | None = None
    ) -> Array:
        """Overwrite `x` on all ranks with that of `root`, in place; return it."""
        memory = memory_of(x, "x", self.rank)
        call = self._call(_C.Collective.broadcast, memory, root=root, algo=algo, timeout=timeout)
        self._group.run(**call)
        return x

    def reduce(
        self,
        x: Array,
        op: str = "sum",
        root: int = 0,
        algo: str = "auto",
        *,
        timeout: float | None = None,
    ) -> Array:
        """Reduce `x` over all ranks into that of `root`; elsewhere it keeps its value."""
        # The ranks on the way to the root hold partial results.
        memory = memory_of(x if self.rank == root else copy_of(x, "x", self.rank), "x", self.rank)
        call = self._call(
            _C.Collective.reduce, memory, op=op, root=root, algo=algo, timeout=timeout
        )
        self._group.run(**call)
        return x

    def barrier(self, *, timeout: float | None = None) -> None:
        """Return once every rank has entered the barrier."""
        memory = memory_of(np.zeros(1, np.uint8), "barrier", self.rank)
        self._group.run(**self._call(_C.Collective.barrier, memory, op="max", timeout=timeout))

    def split(self, color: int | None, key: int = 0) -> Communicator | None:
        """Make one new communicator for each color, its ranks ordered by (key, rank).

        Every rank calls it; a rank that passes None gets None. As MPI_Comm_split.
        """
        mine = np.array([-1 if color is None else color, key], np.int64)
        if color is not None and color < 0:
            raise UsageError(f"color={color}: must be 0 or more, or None")
        rows = self.allgather(mine).reshape(self.world_size, 2)
        self._splits += 1
        if color is None:
            return None
        members = [int(r) for r in np.lexsort((np.arange(self.world_size), rows[:, 1]))]
        members = [r for r in members if rows[r, 0] == color]
        group = f"{self._wiring.group_id:08x}.{self._wiring.generation}"
        prefix = f"split/{group}/{self._splits}/{color}/"
        return Communicator.from_store(
            PrefixStore(self._store, prefix),
            members.index(self.rank),
            len(members),
            nodes=[f"{self.node_of_rank[r]}" for r in members],
            **{**self._options, "link": self.link},
        )

    def symmetric_empty(
        self, shape: int | Sequence[int], dtype: str = "float32"
    ) -> np.ndarray[Any, Any]:
        """Return a new array in symmetric memory: all ranks of a node map it at the same place.

        Every rank calls it, with the same arguments. An allreduce of it, or of the same part of it
        on all ranks, copies nothing inside a node. bfloat16 comes as uint16. The memory is zero.
        """
        return symmetric_empty(self._group, self._wiring, shape, dtype)

    def explain(self, nbytes: int, dtype: str = "float32") -> str:
        """Say what `algo="auto"` does for an allreduce of `nbytes`, and why."""
        itemsize(dtype)
        ranks = self._ranks_of_schedules()
        layout = f"{self.world_size} ranks on {self.num_nodes} nodes"
        head = f"allreduce of {nbytes} B {dtype} on {layout}: "
        if ranks == 1:
            return head + "shared memory only; no schedule runs between nodes"
        name = self._group.choose(_C.Collective.allreduce, nbytes)
        stages = f"{name} among {ranks} {'nodes' if self.hierarchical else 'ranks'}"
        if self.hierarchical and self.world_size > self.num_nodes:
            stages = f"local reduce-scatter -> {stages} -> local allgather"
        if self.link is None:
            return f"{head}{stages}; by default thresholds, the links were not measured"
        return f"{head}{stages}. {cost.comparison(ranks, nbytes, self.link)}"

    def traffic(self) -> dict[str, int]:
        """Return the bytes that this rank has moved so far, inside its node and to others."""
        shared, network = self._group.traffic()
        return {"shared_memory_bytes": shared, "network_bytes": network}

    def abort(self, reason: str) -> None:
        """Poison the group on all ranks: whatever waits in it raises. From any thread."""
        self._group.abort(reason)

    def close(self) -> None:
        """Leave the group. What this rank still has in flight ends with AbortedError."""
        self._group.close()
        for link in self._wiring.fd_links:
            link.close()

    def __enter__(self) -> Communicator:
        """Return the communicator itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it; after an exception abort it first, so that no rank waits for this one."""
        if error is not None:  # without this, the others would wait for their deadline
            self.abort(f"rank {self.rank} raised {kind.__name__ if kind else ''}: {error}")
        self.close()

    def __del__(self) -> None:
        """Close it before the arrays of its works are freed."""
        if hasattr(self, "_group"):
            self._group.close()

    def __repr__(self) -> str:
        """Return rank and layout."""
        return (
            f"<Communicator rank {self.rank} of {self.world_size}, node {self.node} of "
            f"{self.num_nodes}>"
        )

    def _ranks_of_schedules(self) -> int:
        return self.num_nodes if self.hierarchical else self.world_size


def _check_options(
    timeout: float, local: str, rails: int, segment_bytes: int, generation: int
) -> None:
    if local not in _LOCAL_FORMS:
        raise UsageError(f"local={local!r}: must be one of {', '.join(_LOCAL_FORMS)}")
    if not timeout > 0:
        raise UsageError(f"timeout={timeout}: must be a positive number of seconds")
    if rails < 0 or segment_bytes < 64:
        raise UsageError("rails must be 0 or more, segment_bytes 64 or more")
    if not 0 <= generation < 1 << 16:
        raise UsageError(f"generation={generation}: must be in 0..65535")
