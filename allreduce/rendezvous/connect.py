"""From a store to connected descriptors: everything before the C++ core takes over."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from allreduce.errors import UsageError
from allreduce.rendezvous.acceptor import close_all
from allreduce.rendezvous.address import congestion_control, dead_after_option
from allreduce.rendezvous.handshake import Kind, Link, job_secret
from allreduce.rendezvous.node_layout import NodesOption, layout, my_identity, nodes_option
from allreduce.rendezvous.on_demand import Connector
from allreduce.rendezvous.shared_memory import close_fds, share_fd
from allreduce.rendezvous.startup import Request, Startup
from allreduce.rendezvous.store import Store

__all__ = ["Connections", "connect", "exchange_fd"]

log = logging.getLogger("allreduce")

MAX_LANES = 64
_MOST_FOR_ALL = 32  # ranks

ConnectOption = Literal["all", "needed"] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Connections:
    """The connected descriptors of one rank, nonblocking and close-on-exec.

    The core takes ownership of `control`, `data`, `connector_fd`, `arena_fd` and `doorbells`;
    `connector` and `fd_links` stay Python's. Whoever does not hand them over calls `close`.
    """

    rank: int
    world_size: int
    node_of_rank: list[int]  # node of each rank, numbered by first appearance
    local_ranks: list[int]  # the ranks of this node, ascending; the first is its leader
    group_id: int  # 32 bits, random, the same on all ranks
    generation: int
    named_nodes: bool = False  # the nodes were asked for, not found
    checksum: bool = True  # what passes between nodes is checked
    control: dict[int, int] = field(default_factory=dict)  # peer -> stream socket
    # peer on another node -> TCP socket per lane, and one for messages
    data: dict[int, list[int]] = field(default_factory=dict)
    connector: Connector | None = None  # of the peers on other nodes that have no `data`
    connector_fd: int = -1  # by which the core asks it; -1 without one
    arena_fd: int = -1  # memfd shared by the node; -1 for a rank alone on its node
    arena_bytes: int = 0
    doorbells: list[int] = field(default_factory=list)  # eventfd per local rank, own one included
    # leader: one per other local rank, in their order; others: one to the leader
    fd_links: list[socket.socket] = field(default_factory=list)
    congestion: str = ""  # congestion control of the data sockets; empty without any
    summary: str = ""  # one line for the log
    ranks_on_host: int = 1  # ranks of the group on this real host, whatever nodes are simulated
    dead_after: float = 4.0  # seconds without an answer after which a host is dead
    one_host: bool = False  # all ranks reach each other by loopback
    hosts: list[str] = field(default_factory=list)  # name of each rank's host, for messages

    def close(self) -> None:
        """Close every descriptor; only while nobody else owns one."""
        close_fds([*self.control.values(), *(fd for lanes in self.data.values() for fd in lanes)])
        close_fds([self.connector_fd, self.arena_fd, *self.doorbells])
        self.close_own()

    def close_own(self) -> None:
        """Close what stays Python's."""
        self.close_connector()
        close_all(self.fd_links)

    def close_connector(self) -> None:
        """Connect no more ranks; before the group is closed."""
        if self.connector:
            self.connector.close()

    def leave_child(self) -> None:
        """Close that in a forked child."""
        if self.connector:
            self.connector.leave_child()
        close_all(self.fd_links)


def exchange_fd(connections: Connections, fd: int, timeout: float) -> int:
    """Give the node leader's descriptor to all ranks of the node, as `share_fd` does.

    A rank alone on its node gets its own `fd` back.
    """
    if not connections.fd_links:
        return fd
    leader = connections.rank == connections.local_ranks[0]
    return share_fd(connections.fd_links, leader, fd, time.monotonic() + timeout)


def connect(
    store: Store,
    rank: int,
    world_size: int,
    *,
    nodes: NodesOption = None,
    lanes: int = 2,
    connect_to: ConnectOption = None,
    checksum: bool | None = None,
    arena_bytes: Callable[[int], int],
    timeout: float,
    generation: int = 0,
    congestion: str | None = None,
    dead_after: float | None = None,
    route_to: str | None = None,
    environ: Mapping[str, str] | None = None,
    tuning: str = "",
    refusal: str = "",
) -> Connections:
    """Connect this rank with all others of its group, once per generation of a store.

    Args:
        store: any object with torch's `set`, `get` and `check`; later split, shrink, grow need it.
        nodes, connect_to, dead_after: as `nodes_option` and so on take them.
        lanes: TCP data connections to each peer on another node.
        checksum: of what passes between nodes; `ALLREDUCE_CHECKSUM`, then yes, where None.
        arena_bytes: bytes of shared memory of a node, given its number of ranks (at least 2).
        timeout: seconds for everything.
        generation: part of every key and handshake; higher for a group that is built again.
        congestion: of TCP; `ALLREDUCE_TCP_CONGESTION`, then the kernel's (cubic on loopback).
        route_to: a host that all peers reach, to choose this rank's address by; None: the store's.
        tuning, refusal: digest of its tuning file; why it cannot take part, if so.

    Raises:
        Timeout: ranks are missing at the deadline; the message names them.
        PeerError, SystemCallError: a peer or the store died; no descriptors or memory are left.
        UsageError: an argument or variable makes no sense, or differs between ranks.
    """
    environ = os.environ if environ is None else environ
    _check_numbers(rank, world_size, lanes)
    request = Request(
        store=store,
        rank=rank,
        world_size=world_size,
        option=nodes_option(nodes, environ),
        lanes=lanes,
        connect_all=connect_option(connect_to, world_size, environ) == "all",
        checksum=checksum_option(checksum, environ),
        arena_bytes=arena_bytes,
        deadline=time.monotonic() + timeout,
        generation=generation,
        congestion=congestion or environ.get("ALLREDUCE_TCP_CONGESTION") or None,
        dead_after=dead_after_option(dead_after, environ),
        route_to=route_to,
        secret=job_secret(environ),
        environ=environ,
        tuning=tuning,
        refusal=refusal,
    )
    return _connect(request) if world_size > 1 else _alone(request)


def _check_numbers(rank: int, world_size: int, lanes: int) -> None:
    if world_size < 1 or not 0 <= rank < world_size:
        raise UsageError(f"rank={rank}, world_size={world_size}: rank must be in 0..world_size-1")
    if not 1 <= lanes <= MAX_LANES:
        raise UsageError(f"lanes={lanes}: must be in 1..{MAX_LANES}")


def connect_option(
    given: ConnectOption, world_size: int, environ: Mapping[str, str]
) -> Literal["all", "needed"]:
    """Return with whom a rank connects at start-up: with "all" others, or with those that start-up
    itself "needed", and with the rest at the first use. The argument, else `ALLREDUCE_CONNECT`,
    else by the number of ranks: the connections of all pairs grow with its square.

    Raises:
        UsageError: another value.
    """
    text = given if given is not None else environ.get("ALLREDUCE_CONNECT", "").strip()
    if not text:
        return "all" if world_size <= _MOST_FOR_ALL else "needed"
    if text == "all":
        return "all"
    if text == "needed":
        return "needed"
    source = "ALLREDUCE_CONNECT" if given is None else "connect"
    raise UsageError(f"{source}={text!r}: must be all or needed")


def checksum_option(given: bool | None, environ: Mapping[str, str]) -> bool:
    """Return whether a CRC32C guards what nodes exchange: the argument, else `ALLREDUCE_CHECKSUM`,
    else yes.

    Raises:
        UsageError: another value.
    """
    if given is not None:
        if not isinstance(given, bool):
            raise UsageError(f"checksum={given!r}: must be True, False or None")
        return given
    text = environ.get("ALLREDUCE_CHECKSUM", "1").strip()
    if text not in ("0", "1"):
        raise UsageError(f"ALLREDUCE_CHECKSUM={text!r}: must be 0 or 1")
    return text == "1"


def _alone(request: Request) -> Connections:
    layout([my_identity()], request.option)  # it may make no sense for one rank
    if request.refusal:
        raise UsageError(request.refusal)
    return Connections(
        rank=0,
        world_size=1,
        node_of_rank=[0],
        local_ranks=[0],
        group_id=secrets.randbits(32),
        generation=request.generation,
        named_nodes=request.option is not None,
        checksum=request.checksum,
        summary="rank 0 of 1: no connections",
        dead_after=request.dead_after,
    )


def _connect(request: Request) -> Connections:
    with contextlib.ExitStack() as stack:
        startup = Startup(request, stack)
        startup.exchange_infos()
        startup.allocate()
        connector = startup.make_connector()
        sockets = startup.connect_mesh().sockets
        connections = _hand_over(request, startup, sockets, connector)
        stack.pop_all()  # the connections own what is open
    log.info("%s", connections.summary)
    return connections


def _hand_over(
    request: Request,
    startup: Startup,
    sockets: dict[Link, socket.socket],
    connector: Connector | None,
) -> Connections:
    """Turn the sockets into the descriptors that the core will own."""
    rank, node_of_rank = request.rank, startup.node_of_rank
    control: dict[int, int] = {}
    data: dict[int, list[int]] = {}
    fd_links: dict[int, socket.socket] = {}
    congestion = connector.congestion if connector else ""
    for link in sorted(sockets, key=lambda link: (link.peer_of(rank), link)):
        sock, peer = sockets[link], link.peer_of(rank)
        if link.kind is Kind.DATA:
            congestion = congestion or congestion_control(sock)
            data.setdefault(peer, []).append(sock.detach())
        elif link.kind is Kind.CONTROL:
            control[peer] = sock.detach()
        else:
            fd_links[peer] = sock
    return Connections(
        rank=rank,
        world_size=len(node_of_rank),
        node_of_rank=node_of_rank,
        local_ranks=startup.local_ranks,
        group_id=startup.ranks[0].group_id,
        generation=request.generation,
        named_nodes=request.option is not None,
        checksum=request.checksum,
        control=control,
        data=data,
        connector=connector,
        connector_fd=connector.wake_fd if connector else -1,
        arena_fd=startup.arena.fd,
        arena_bytes=startup.arena.size,
        doorbells=startup.arena.doorbells,
        fd_links=list(fd_links.values()),
        congestion=congestion,
        summary=_describe(rank, node_of_rank, startup.local_ranks, data, congestion),
        ranks_on_host=startup.ranks_on_host,
        dead_after=request.dead_after,
        one_host=startup.one_host,
        hosts=[info.identity.host for info in startup.ranks],
    )


def _describe(
    rank: int,
    node_of_rank: Sequence[int],
    local_ranks: Sequence[int],
    data: Mapping[int, Sequence[int]],
    congestion: str,
) -> str:
    text = (
        f"rank {rank} of {len(node_of_rank)}, node {node_of_rank[rank]} of {max(node_of_rank) + 1}"
    )
    if len(local_ranks) > 1:
        text += f"; {_peers(len(local_ranks) - 1)} by shared memory"
    if data:
        lanes = len(next(iter(data.values()))) - 1
        text += f"; {_peers(len(data))} by TCP, {lanes} lane{'s' * (lanes != 1)} each"
    elif congestion:
        text += "; other nodes by TCP, at the first use"
    if congestion:
        text += f", congestion control {congestion}"
    return text


def _peers(count: int) -> str:
    return f"{count} peer{'s' * (count != 1)}"
