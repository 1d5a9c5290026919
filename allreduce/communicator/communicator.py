"""Communicators: collectives on arrays of NumPy, CuPy and torch."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, overload

import numpy as np

from allreduce import _C
from allreduce.communicator import at_exit
from allreduce.communicator.arrays import copy_of, memory_of
from allreduce.communicator.auto_choices import follow_or_measure, measure_and_follow
from allreduce.communicator.collective_base import Algorithm, Array, seconds
from allreduce.communicator.device_arrays import DeviceArray
from allreduce.communicator.device_streams import DeviceStreams
from allreduce.communicator.explain import explain
from allreduce.communicator.gpu_local_stage import set_up
from allreduce.communicator.options import check_options, connect_ranks, layout_of, with_tuning
from allreduce.communicator.point_to_point import PointToPoint
from allreduce.communicator.regrouping import Regrouping
from allreduce.communicator.symmetric_memory import symmetric_empty
from allreduce.communicator.types import KNOWN_AS, DType, LocalForm, ReduceOp
from allreduce.communicator.work import Work, make_group
from allreduce.rendezvous.connect import Connections, ConnectOption
from allreduce.rendezvous.node_layout import NodesOption
from allreduce.rendezvous.store import Store
from allreduce.schedules.user_schedules import OwnSchedules
from allreduce.tuning import Tuning, cost
from allreduce.tuning.measurement import WELL
from allreduce.tuning.option import TuningOption, resolve_tuning

__all__ = ["Communicator"]

T = TypeVar("T")

log = logging.getLogger("allreduce")


class Communicator(PointToPoint, Regrouping):
    """A group of ranks and its collectives. Every rank makes the same calls in the same order.

    Arrays are contiguous, in host or GPU memory, of dtype float64, float32, float16, bfloat16
    (torch), int64, int32, int16, int8, uint8 or bool. Reductions are `sum`, `avg` (floats), `min`,
    `max`, `prod`, and `band`, `bor`, `bxor` (integers and bool).

    A collective on GPU memory comes after the work on the array's stream (torch's current one), and
    what is enqueued there later sees its result; no thread waits. A group that fails meanwhile
    raises at the next call, and leaves NaN in what it had not yet reduced.

    Errors of every collective: `UsageError` (an argument cannot work), `MismatchError` (ranks
    disagree), `IntegrityError` (data were damaged on the way), `PeerError` (a rank died or left),
    `Timeout`, `AbortedError` (the group has failed before). After any but the first the group is
    poisoned, on all ranks.
    """

    def __init__(self, connections: Connections, store: Store, options: dict[str, Any]) -> None:
        """Use `init` or `Communicator.from_store`."""
        self._connections = connections
        self._store = store
        self._options = options
        self._splits = self._grown = 0
        self._closed = False
        self._attempt = 1
        self.layout = layout_of(connections, options)
        self.tuning: Tuning | None = options["tuning"]
        self._in_flight: deque[Work] = deque()
        self._streams = DeviceStreams()
        self.device_stage: str | None = None
        self._counters: Array = None  # of the peers' stage, mapped as long as the group
        self._group = make_group(connections, options)
        self.rank = connections.rank
        self.world_size = connections.world_size
        self.node_of_rank = tuple(connections.node_of_rank)
        self.node = connections.node_of_rank[connections.rank]
        self.num_nodes = max(connections.node_of_rank) + 1
        self._own = OwnSchedules(self._group, self.node_of_rank)
        self.local_rank = connections.local_ranks.index(connections.rank)
        self.local_size = len(connections.local_ranks)
        self.congestion = connections.congestion
        at_exit.add(self)
        if self.world_size > 1:
            follow_or_measure(self, may_measure=options["measure"])

    @property
    def link(self) -> cost.Link | None:
        """The figures of what schedules run over, where they are known."""
        return self.tuning.links.get(self.layout.schedule_link) if self.tuning else None

    @property
    def hierarchical(self) -> bool:
        """Whether the ranks of a node work together in shared memory, if there are several."""
        return self.layout.local != "none"

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
        local: LocalForm = "rs_ag",
        rails: int | None = None,
        lanes: int | None = None,
        segment_bytes: int | None = None,
        connect: ConnectOption = None,
        checksum: bool | None = None,
        dead_after: float | None = None,
        measure: bool = True,
        tuning: TuningOption = None,
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
            segment_bytes: most bytes that one step of a schedule carries. Where these three are
                None: what the tuning file says, else 0, 2 and 256 KiB.
            connect: at the start with "all" ranks, or with those "needed" then; others follow at
                their first use. `ALLREDUCE_CONNECT`, then "all" up to 32 ranks.
            checksum: a CRC32C guards what nodes exchange; `ALLREDUCE_CHECKSUM` (0 or 1), then yes.
            dead_after: seconds of silence before a host is dead; `ALLREDUCE_DEAD_AFTER`, then 4.
            tuning: a file of `python -m allreduce.tune`, by default `ALLREDUCE_TUNING`; or the
                `tuning` of a larger group of the same machines.
            measure: without a tuning measure briefly now, so that `algo="auto"` need not use
                thresholds. `Communicator.measure` measures more.

        Raises:
            Timeout, PeerError, UsageError: ranks are missing, died, or disagree.
        """
        check_options(timeout, local, rails, segment_bytes, generation)
        request = resolve_tuning(tuning, os.environ)
        lanes = request.lanes(lanes, world_size)
        options: dict[str, Any] = {"timeout": timeout, "local": local, "rails": rails}
        options |= {"segment_bytes": segment_bytes, "dead_after": dead_after, "measure": measure}
        options |= {"lanes": lanes, "connect": connect}
        connections = connect_ranks(
            store, rank, world_size, request, options, nodes, checksum, generation
        )
        return cls(connections, store, with_tuning(connections, options, request))

    @overload
    def allreduce(
        self,
        x: T,
        op: ReduceOp = ...,
        algo: Algorithm = ...,
        async_op: Literal[False] = ...,
        *,
        timeout: float | None = ...,
        name: str = ...,
    ) -> T: ...
    @overload
    def allreduce(
        self,
        x: Array,
        op: ReduceOp = ...,
        algo: Algorithm = ...,
        *,
        async_op: Literal[True],
        timeout: float | None = ...,
        name: str = ...,
    ) -> Work: ...
    def allreduce(
        self,
        x: Array,
        op: ReduceOp = "sum",
        algo: Algorithm = "auto",
        async_op: bool = False,
        *,
        timeout: float | None = None,
        name: str = "",
    ) -> Array | Work:
        """Reduce `x` over all ranks, in place and without a copy, on every rank.

        Args:
            x: array of any shape, the same count and dtype on all ranks.
            algo: between nodes: "auto", or one of `allreduce.schedules.algorithms("allreduce")`. Or
                a schedule of yours, or the name under which `allreduce.schedules.register` has it.
            async_op: return a `Work` at once.
            timeout: seconds, in place of the group's.
            name: checked to be the same on all ranks.

        Returns:
            `x`, or a `Work` whose `wait` returns it.
        """
        named: Any = algo
        if algo != "auto":
            named = self._own.name_of(algo, _C.Collective.allreduce, 0)
        try:
            if not async_op and not name and self._group.allreduce(x, op, named, seconds(timeout)):
                return x
        except TypeError:
            pass  # an argument of another type: the way of all other calls names it
        memory = memory_of(x, "x", self.rank)
        if memory.device and memory.nbytes > self._group.host_path_bytes:
            self.use_device(memory.device)
        call = self._call(
            _C.Collective.allreduce, memory, op=op, algo=named, timeout=timeout, name=name
        )
        if async_op:
            return self._keep(Work(self._group, self._group.start(**call), x))
        self._group.run(**call)
        return x

    def broadcast(
        self, x: T, root: int = 0, algo: Algorithm = "auto", *, timeout: float | None = None
    ) -> T:
        """Overwrite `x` on all ranks with that of `root`, in place; return it."""
        memory = memory_of(x, "x", self.rank)
        call = self._call(_C.Collective.broadcast, memory, root=root, algo=algo, timeout=timeout)
        self._group.run(**call)
        return x

    def reduce(
        self,
        x: T,
        op: ReduceOp = "sum",
        root: int = 0,
        algo: Algorithm = "auto",
        *,
        timeout: float | None = None,
    ) -> T:
        """Reduce `x` over all ranks into that of `root`; elsewhere it keeps its value."""
        memory = memory_of(x, "x", self.rank, writable=self.rank == root, in_place=True)
        if self.rank != root:  # the ranks on the way to the root hold partial results
            self._settle(x)
            memory = memory_of(copy_of(x, "x", self.rank), "x", self.rank)
        call = self._call(
            _C.Collective.reduce, memory, op=op, root=root, algo=algo, timeout=timeout
        )
        self._group.run(**call)
        return x

    def barrier(self, *, timeout: float | None = None) -> None:
        """Return once every rank has entered the barrier, behind its earlier collectives."""
        memory = memory_of(np.zeros(1, np.uint8), "barrier", self.rank)
        self._group.run(**self._call(_C.Collective.barrier, memory, op="max", timeout=timeout))

    def symmetric_empty(
        self, shape: int | Sequence[int], dtype: DType = "float32"
    ) -> np.ndarray[Any, Any]:
        """Return a new array in symmetric memory: all ranks of a node map it at the same place.

        Every rank calls it, with the same arguments. The memory is zero; bfloat16 comes as uint16.

        An allreduce of it, or of the same part of it on all ranks, copies nothing inside a node.
        On one node a reduce_scatter and an allgather in place read it where it lies. So all ranks
        have to give these calls the same place in symmetric memory, or none.
        """
        return symmetric_empty(self._group, self._connections, shape, dtype)

    def use_device(self, array: DeviceArray | int) -> str:
        """Choose the local stage of GPU buffers: "peer", "nccl", or "host: " and why. Once.

        All ranks call it; the first allreduce of more than 256 KiB of GPU memory does. Up to how
        many bytes the CPU sums is then measured, unless the group measures nothing. The variable
        ALLREDUCE_DEVICE_LOCAL asks for one of them; "auto" takes the first that all ranks can have.
        """
        if self.device_stage is None:
            self.device_stage = "host: being chosen"
            found, device = self._streams.locate(array)
            self.device_stage = set_up(self, found, device)
        return self.device_stage

    def explain(self, nbytes: int, dtype: str = "float32") -> str:
        """Say in some lines what `algo="auto"` does for an allreduce of `nbytes`, and why.

        The stages with rails, segment and lanes; each algorithm's measured or predicted time; the
        links' figures and where all of that comes from.
        """
        return explain(self, nbytes, dtype)

    def predict(self, nbytes: int) -> float | None:
        """Return the seconds that an allreduce of `nbytes` takes by `algo="auto"`.

        They come from what was measured, or from the cost model; None where nothing is known.
        """
        if self.tuning is None:
            return None
        algorithm = self._group.choose(_C.Collective.allreduce, nbytes)
        found = self.tuning.seconds(self.layout, algorithm, nbytes)
        return found[0] if found else None

    def measure(self) -> None:
        """Time the algorithms of an allreduce for about half a second: `algo="auto"` then goes by
        that, and not by what `init` has seen in some hundredths of a second.

        Every rank calls it, any time. It replaces what a tuning file says of an allreduce.
        """
        if self.world_size > 1:
            measure_and_follow(self, WELL)

    def traffic(self) -> dict[str, int]:
        """Return the bytes that this rank has moved so far, inside its node and to others."""
        shared, network = self._group.traffic()
        return {"shared_memory_bytes": shared, "network_bytes": network}

    def abort(self, reason: str) -> None:
        """Poison the group on all ranks: whatever waits in it raises. From any thread."""
        self._group.abort(reason)

    def close(self) -> None:
        """Leave the group. What this rank still has in flight ends with AbortedError.

        An error of another rank's that no call has raised here is logged: its send or broadcast may
        have been over when the receiver found that the sizes differ. In a forked child it does
        nothing: the parent alone is a member.
        """
        if self._group.inherited:
            return
        self._closed = True
        self._connections.close_connector()
        self._group.close()
        if error := self._group.take_error_at_close():
            log.error("rank %d closes a group that has failed: %s", self.rank, error)
        self._streams.close()
        self._connections.close_own()

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
        # Without this, the others would wait for their deadline. (A forked child is no rank.)
        if error is not None and not self._group.inherited:
            self.abort(f"rank {self.rank} raised {kind.__name__ if kind else ''}: {error}")
        self.close()

    def __del__(self) -> None:
        """Close it before the arrays of its works are freed."""
        if hasattr(self, "_group"):
            self._connections.close_connector()
            self._group.close()

    if not TYPE_CHECKING:  # a type checker knows what there is

        def __getattr__(self, name: str) -> NoReturn:
            """Name what another library's word is called here."""
            hint = f"; it is called {KNOWN_AS[name]} here" if name in KNOWN_AS else ""
            raise AttributeError(f"a Communicator has no {name!r}{hint}")

    def __repr__(self) -> str:
        """Return rank and layout."""
        return (
            f"<Communicator rank {self.rank} of {self.world_size}, node {self.node} of "
            f"{self.num_nodes}>"
        )
