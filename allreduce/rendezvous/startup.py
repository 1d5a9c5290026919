"""The stages of a start-up, from a store to connected sockets; connect.py walks through them.

    exchange_infos   each rank publishes its RankInfo; rank 0 compares them and publishes a table
    allocate         nodes, descriptors, shared memory; with several nodes also a TCP listener
    connect_mesh     the higher rank of a pair connects to the lower, and both prove who they are;
                     rank 0 releases all ranks, down a tree

What fails on one rank is published where the others can see it, so that they fail at once too.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from allreduce import _C
from allreduce.errors import SystemCallError, UsageError
from allreduce.rendezvous.address import Address, choose_address
from allreduce.rendezvous.caller import Endpoint
from allreduce.rendezvous.exchange import StoreExchange
from allreduce.rendezvous.handshake import Session
from allreduce.rendezvous.listener import (
    CallAddress,
    check_different,
    listen,
    ports_option,
    refusal,
)
from allreduce.rendezvous.mesh_builder import MeshBuilder, links_of
from allreduce.rendezvous.node_layout import layout, my_identity
from allreduce.rendezvous.on_demand import Connector
from allreduce.rendezvous.rank_info import RankInfo
from allreduce.rendezvous.shared_memory import MAX_FDS, Arena, raise_descriptor_limit
from allreduce.rendezvous.store import Store, store_host

log = logging.getLogger("allreduce")

_SPARE_DESCRIPTORS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one rank was asked for; `option` as `nodes_option` returns it, `deadline` monotonic."""

    store: Store
    rank: int
    world_size: int
    option: int | list[str] | None
    lanes: int
    connect_all: bool
    checksum: bool
    arena_bytes: Callable[[int], int]
    deadline: float
    generation: int
    congestion: str | None
    dead_after: float
    route_to: str | None
    secret: bytes | None
    environ: Mapping[str, str]
    tuning: str
    refusal: str


class Startup:
    """One start-up of one rank. Everything that it opens belongs to `stack`."""

    def __init__(self, request: Request, stack: contextlib.ExitStack) -> None:
        self._request = request
        self._stack = stack
        self._exchange = StoreExchange(
            request.store,
            request.rank,
            request.world_size,
            request.generation,
            request.secret,
            request.deadline,
        )
        self._listeners: list[socket.socket] = []
        self._addresses: list[CallAddress] = []
        self.ranks: list[RankInfo] = []
        self.node_of_rank: list[int] = []
        self.arena = stack.enter_context(contextlib.closing(Arena()))

    @functools.cached_property
    def local_ranks(self) -> list[int]:
        """Return the ranks of this rank's node, ascending."""
        node = self.node_of_rank[self._request.rank]
        return [rank for rank, other in enumerate(self.node_of_rank) if other == node]

    @property
    def ranks_on_host(self) -> int:
        """Return how many ranks share this machine's cores, on whatever nodes."""
        here = self.ranks[self._request.rank].boot
        return sum(info.boot == here for info in self.ranks)

    @functools.cached_property
    def one_host(self) -> bool:
        """Return whether all ranks reach each other by loopback."""
        return len({info.identity.loopback for info in self.ranks}) == 1

    def exchange_infos(self) -> None:
        """Exchange RankInfos and lay out the nodes; all ranks get the same table or error."""
        request = self._request
        unix = self._stack.enter_context(_listen_unix())
        self._listeners.append(unix)
        info = _rank_info(request, unix)
        if request.rank == 0 and not info.authenticated:
            log.info("peer links: accident-proof, not authenticated; set ALLREDUCE_SECRET_FILE")

        def accept(peer: int, value: bytes) -> None:
            RankInfo.unpack(peer, value).check_against(peer, info)

        def judge(values: list[bytes]) -> None:
            self.ranks = [RankInfo.unpack(peer, value) for peer, value in enumerate(values)]
            self.node_of_rank = layout([info.identity for info in self.ranks], request.option)

        judge(self._exchange.gather("info", info.pack(), accept, judge))

    def allocate(self) -> None:
        """Get what this rank needs of its host; with several nodes, exchange TCP addresses."""
        several = max(self.node_of_rank) > 0
        try:
            self._check_descriptors()
            if several:
                self._listeners.append(self._stack.enter_context(self._listen_tcp()))
            self._allocate_arena()
        except (ValueError, OSError) as error:
            if several:
                self._publish_failure(error)
            else:
                self._exchange.publish_failure(error)
            raise
        if several:
            self._publish_address()

    def connect_mesh(self) -> MeshBuilder:
        """Connect with all ranks; what this rank wrote is removed from the store."""
        with self._telling():
            builder = self._make_builder()
            builder.run(self._exchange.raise_failure)
        self._exchange.clean()
        return builder

    def _make_builder(self) -> MeshBuilder:
        request = self._request
        builder = MeshBuilder(
            rank=request.rank,
            node_of_rank=self.node_of_rank,
            lanes=request.lanes,
            connect_all=request.connect_all,
            session=self._session(),
            listeners=self._listeners,
            endpoints=self._endpoints,
            arena=self.arena,
            congestion=request.congestion,
            loopback=self.one_host,
            dead_after=request.dead_after,
            deadline=request.deadline,
        )
        self._stack.callback(builder.close)
        return builder

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Inside, an error is told to all ranks before closed connections show them that it is."""
        try:
            yield
        except Exception as error:
            first = self._exchange.publish_failure(error)
            if first is not error:
                raise first from error
            raise

    def make_connector(self) -> Connector | None:
        """Return what connects this rank on demand; None where it is connected with all ranks."""
        request = self._request
        if request.connect_all or max(self.node_of_rank) == 0:
            return None
        with self._telling():
            connector = Connector(
                rank=request.rank,
                node_of_rank=self.node_of_rank,
                lanes=request.lanes,
                session=self._session(),
                listener=self._stack.enter_context(self._listeners[-1].dup()),
                endpoints=self._endpoints,
                congestion=request.congestion,
                loopback=self.one_host,
                dead_after=request.dead_after,
            )
        self._stack.callback(connector.close)
        return connector

    def _session(self) -> Session:
        request, first = self._request, self.ranks[0]
        secret = request.secret if request.secret is not None else bytes.fromhex(first.secret)
        return Session.derive(secret, first.group_id, request.generation)

    def _check_descriptors(self) -> None:
        rank, lanes = self._request.rank, self._request.lanes
        links = links_of(rank, self.node_of_rank, lanes, self._request.connect_all)
        needed = len(links) + len(self.local_ranks) + _SPARE_DESCRIPTORS
        open_now = len(os.listdir("/proc/self/fd"))
        most = len(links_of(rank, self.node_of_rank, lanes, connect_all=True))
        limit = raise_descriptor_limit(open_now + max(needed, most + _SPARE_DESCRIPTORS))
        if limit < open_now + needed:
            raise SystemCallError(
                errno.EMFILE,
                f"rank {rank} needs {needed} descriptors for {len(self.ranks)} ranks, {open_now} "
                f"are open and the limit is {limit}; raise it (ulimit -n "
                f"{open_now + needed + 256}) "
                "or lower lanes",
            )

    def _listen_tcp(self) -> socket.socket:
        """Listen on the one address that other nodes use."""
        request = self._request
        route_to = request.route_to or store_host(request.store)
        route_to = route_to or request.environ.get("MASTER_ADDR")
        local_index = self.local_ranks.index(request.rank)
        return listen(
            choose_address(self.one_host, route_to, request.environ, local_index),
            ports_option(request.environ),
            local_index=local_index,
            congestion=request.congestion,
            loopback=self.one_host,
        )

    def _allocate_arena(self) -> None:
        """Allocate the node's shared memory on its lowest rank; note its size on the others."""
        local_size = len(self.local_ranks)
        if local_size == 1:
            return
        if local_size >= MAX_FDS:
            raise UsageError(
                f"{local_size} ranks on one node; at most {MAX_FDS - 1} can share memory"
            )
        size = self._request.arena_bytes(local_size)
        if size <= 0:
            raise UsageError(f"arena_bytes({local_size}) is {size}; it must be positive")
        if self._request.rank == self.local_ranks[0]:
            self.arena.create(size, local_size)
        else:
            self.arena.size = size

    def _publish_address(self) -> None:
        mine = CallAddress.of(self._listeners[-1], self._request.environ)
        log.info("rank %d is called at %s", self._request.rank, mine)

        def judge(values: list[bytes]) -> None:
            self._addresses = [CallAddress.unpack(*entry) for entry in enumerate(values)]
            check_different(self._addresses, [info.identity.loopback for info in self.ranks])

        judge(self._exchange.gather("address", mine.pack(), CallAddress.unpack, judge))

    def _publish_failure(self, failure: Exception) -> None:
        """Tell the others at once why this rank will not come."""
        with contextlib.suppress(ValueError, OSError):
            self._exchange.gather("address", refusal(failure), CallAddress.unpack)

    @functools.cached_property
    def _endpoints(self) -> list[Endpoint]:
        endpoints = []
        for peer, info in enumerate(self.ranks):
            name = f"rank {peer} (pid {info.pid} on {info.host}"
            if peer in self.local_ranks:
                address: Address = (socket.AF_UNIX, b"\0" + info.unix_name.encode())
                endpoints.append(Endpoint(address=address, name=name + ")"))
            else:
                call_address = self._addresses[peer]
                endpoints.append(
                    Endpoint(address=call_address.resolve(peer), name=f"{name}, {call_address})")
                )
        return endpoints


def _listen_unix() -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(b"\0hier-allreduce-" + secrets.token_hex(16).encode())
    listener.listen(4096)
    listener.setblocking(False)
    return listener


def _rank_info(request: Request, unix: socket.socket) -> RankInfo:
    identity = my_identity()
    first, authenticated = request.rank == 0, request.secret is not None
    return RankInfo(
        world_size=request.world_size,
        lanes=request.lanes,
        connect="all" if request.connect_all else "needed",
        checksum=request.checksum,
        nodes=request.option,
        authenticated=authenticated,
        boot=identity.boot,
        host=identity.host,
        network=identity.network,
        pid=os.getpid(),
        unix_name=unix.getsockname()[1:].decode(),
        sources=_C.source_hash,
        tuning=request.tuning,
        failure=request.refusal,
        group_id=secrets.randbits(32) if first else 0,
        secret=secrets.token_hex(32) if first and not authenticated else "",
    )
