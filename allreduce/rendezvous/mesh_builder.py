"""The loop that connects one rank with all its peers: calls lower ranks, answers higher ones,
shares the node's memory.

Nothing blocks, so no order of arrival deadlocks. Ranks form a binomial tree of control connections.
When a rank has all its connections, and its children have said so of theirs, it says so to its
parent. Rank 0 then lets all of them go, down the tree. So either every rank has its mesh, or every
rank gets an error: whoever fails closes its connections, and that is noticed at the other ends.
"""

from __future__ import annotations

import logging
import math
import select
import socket
import time
from collections.abc import Callable, Sequence

from allreduce.errors import PeerError, Timeout
from allreduce.rendezvous.acceptor import Acceptor, EventLoop, close_all
from allreduce.rendezvous.address import tune
from allreduce.rendezvous.caller import Caller, Endpoint
from allreduce.rendezvous.handshake import Kind, Link, Session, answer
from allreduce.rendezvous.shared_memory import Arena
from allreduce.rendezvous.store import name_ranks, pause_between_looks

log = logging.getLogger("allreduce")

_WARN_AFTER = 5.0  # seconds in which a network answers
_READY, _GO = b"R", b"G"
_GONE = select.EPOLLRDHUP


def parent_of(rank: int) -> int:
    """Return the parent in the tree of ranks: a power of two below. Of rank 0: 0."""
    return rank & (rank - 1)


def children_of(rank: int, world_size: int) -> list[int]:
    """Return the children in the tree of ranks."""
    lowest_bit = rank & -rank or world_size
    distances = (1 << i for i in range(world_size.bit_length()))
    return [rank + d for d in distances if d < lowest_bit and rank + d < world_size]


def _has_control(a: int, b: int, world_size: int) -> bool:
    """Tell whether two ranks of different nodes have a control connection if not all have: those do
    whose distance around the ring of ranks is a power of two. The tree is part of that graph.
    """
    distance = abs(a - b)
    return any((d & (d - 1)) == 0 for d in (distance, world_size - distance))


def links_of(rank: int, node_of_rank: Sequence[int], lanes: int, connect_all: bool) -> list[Link]:
    """Return the connections of a start-up that end at `rank`; of each pair the higher rank calls.

    Not `connect_all`: control connections form a graph in which a rank has O(log p) neighbours on
    other nodes, and which stays connected whichever rank dies; data connections come at their
    first use.
    """
    links = []
    for peer, node in enumerate(node_of_rank):
        if peer == rank:
            continue
        low, high = sorted((rank, peer))
        apart = node != node_of_rank[rank]
        if connect_all or not apart or _has_control(rank, peer, len(node_of_rank)):
            links.append(Link(Kind.CONTROL, 0, high, low))
        if apart and not connect_all:
            continue
        if apart:
            # One for each lane of collectives, and the last for messages.
            links += [Link(Kind.DATA, lane, high, low) for lane in range(lanes + 1)]
        elif low == node_of_rank.index(node):
            links.append(Link(Kind.FDS, 0, high, low))
    return links


class MeshBuilder:
    """Builds the connections of one rank. Use: construct, `run`, take `sockets`; or `close`.

    Owns the listeners and the sockets, not the arena, which it sends or fills.
    """

    def __init__(
        self,
        *,
        rank: int,
        node_of_rank: Sequence[int],
        lanes: int,
        connect_all: bool,
        session: Session,
        listeners: Sequence[socket.socket],
        endpoints: Sequence[Endpoint],
        arena: Arena,
        congestion: str | None,
        loopback: bool,
        dead_after: float,
        deadline: float,
    ) -> None:
        self._rank = rank
        self._node_of_rank = node_of_rank
        self._world_size = len(node_of_rank)
        self._endpoints = endpoints
        self._dead_after, self._loopback = dead_after, loopback
        self._deadline = deadline
        self._arena = arena
        self.sockets: dict[Link, socket.socket] = {}
        self._links = links_of(rank, node_of_rank, lanes, connect_all)
        self._missing = set(self._links)
        self._awaits_fds = any(link.kind is Kind.FDS and link.src == rank for link in self._links)
        self._parent, self._children = parent_of(rank), children_of(rank, self._world_size)
        self._not_ready = set(self._children)
        self._complete = False  # this rank has everything
        self._ready = False  # so have all those below it in the tree
        self._released = False  # all ranks have everything
        self._loop = EventLoop()
        answered = {link for link in self._links if link.dst == rank}
        self._expected = answered
        self._acceptors = [
            Acceptor(self._loop, listener, lambda: answer(session, answered), self._welcome)
            for listener in listeners
        ]
        self._caller = Caller(
            loop=self._loop,
            session=session,
            endpoints=endpoints,
            congestion=congestion,
            loopback=loopback,
            welcome=self._welcome,
        )
        for link in self._links:
            if link.src == rank:
                self._caller.call(link)

    def run(self, look: Callable[[], None] = lambda: None) -> None:
        """Connect; returns when all ranks are connected.

        Args:
            look: raises the error of a rank that has failed elsewhere; called every half second
                while this rank lacks connections.

        Raises:
            TimeoutError: the deadline passed; the message says who is missing.
            ConnectionError: a peer died, gave up or refused us.
            ValueError: the node's shared memory is not what this rank expects, or a socket option
                is not permitted.
        """
        self._progress()
        warn_at = time.monotonic() + _WARN_AFTER
        pause = pause_between_looks(self._world_size)
        look_at = time.monotonic() + pause
        while not self._released:
            now = time.monotonic()
            if now >= self._deadline:
                raise Timeout(f"start-up not complete by the deadline. {self._report()}")
            if now >= warn_at:
                self._warn()
                warn_at = math.inf
            # A rank that is ready waits for the tree alone: others may be done, and may have gone,
            # together with the store.
            if now >= look_at and not self._ready:
                look()
                look_at = time.monotonic() + pause
            wake = min(self._deadline, warn_at, math.inf if self._ready else look_at)
            for acceptor in self._acceptors:
                acceptor.expire(now)
                wake = min(wake, acceptor.next_expiry())
            self._caller.dial(now)
            self._loop.turn(min(wake, self._caller.next_call()) - time.monotonic())
        self._stop_listening()

    def close(self) -> None:
        """Close everything this rank has opened so far."""
        self._stop_listening()
        self._caller.close()
        close_all(list(self.sockets.values()))
        self.sockets = {}

    def _stop_listening(self) -> None:
        for acceptor in self._acceptors:
            acceptor.close()
        self._loop.close()

    # Proved connections.

    def _welcome(self, link: Link, sock: socket.socket) -> None:
        self._missing.discard(link)
        self._expected.discard(link)
        self.sockets[link] = sock
        try:
            self._greet(link, sock)
        except OSError:
            self._hung_up(link)
        if reader := self._reader(link):
            self._loop.watch(sock.fileno(), _GONE | select.EPOLLIN, lambda _events: reader(link))
        else:
            self._watch_end(link)
        self._progress()

    def _greet(self, link: Link, sock: socket.socket) -> None:
        if sock.family != socket.AF_UNIX:
            tune(sock, self._dead_after, self._loopback)
        if link.kind is Kind.FDS and link.dst == self._rank:
            self._arena.send(sock)

    def _reader(self, link: Link) -> Callable[[Link], None] | None:
        """Return what reads from this connection before it is handed over; None: nothing does."""
        if link.kind is Kind.FDS and link.src == self._rank:
            return self._take_fds
        if link.kind is not Kind.CONTROL or not self._in_tree(link):
            return None
        return self._take_go if link.src == self._rank else self._take_ready

    def _in_tree(self, link: Link) -> bool:
        return link.dst == parent_of(link.src)

    def _watch_end(self, link: Link) -> None:
        self._loop.watch(self.sockets[link].fileno(), _GONE, lambda _events: self._hung_up(link))

    def _take_fds(self, link: Link) -> None:
        try:
            self._arena.receive(self.sockets[link])
        except BlockingIOError:
            return
        except ConnectionError:
            self._hung_up(link)
            return
        self._awaits_fds = False
        self._watch_end(link)
        self._progress()

    def _take_ready(self, link: Link) -> None:
        if self._read_byte(link) == _READY:
            self._not_ready.discard(link.src)
            self._watch_end(link)
            self._progress()

    def _take_go(self, link: Link) -> None:
        if self._read_byte(link) == _GO:
            self._release()

    def _read_byte(self, link: Link) -> bytes:
        try:
            byte = self.sockets[link].recv(1)
        except BlockingIOError:
            return b""
        except OSError:
            byte = b""
        if not byte:
            self._hung_up(link)
        return byte

    def _progress(self) -> None:
        self._complete = not self._missing and not self._awaits_fds
        if self._ready or not self._complete or self._not_ready:
            return
        self._ready = True
        if self._rank == 0:
            self._release()
        else:
            self._say(Link(Kind.CONTROL, 0, self._rank, self._parent), _READY)

    def _release(self) -> None:
        for child in self._children:
            self._say(Link(Kind.CONTROL, 0, child, self._rank), _GO)
        self._released = True

    def _say(self, link: Link, word: bytes) -> None:
        try:
            self.sockets[link].send(word)
        except OSError:
            self._hung_up(link)

    def _hung_up(self, link: Link) -> None:
        """A peer closed. Once this rank is complete, others may be released and done already."""
        peer = link.peer_of(self._rank)
        in_tree = link.kind is Kind.CONTROL and self._in_tree(link)
        if self._complete and not in_tree:
            self._loop.forget(self.sockets[link].fileno())
            return
        if not self._released:
            raise PeerError(
                f"{self._endpoints[peer].name} closed its {link.kind.name.lower()} connection "
                "during start-up: it has died or given up; its own output says why",
                peer,
            )

    # What to say after a while, and at the deadline.

    def _warn(self) -> None:
        """Say early what may be a wrong network. It may also be a slow host, so wait on."""
        if unreached := self._caller.unreached():
            log.warning(
                "rank %d cannot reach %s, and goes on trying; set ALLREDUCE_IFACE or "
                "ALLREDUCE_HOST there, if it is a wrong network",
                self._rank,
                "; ".join(unreached[:3])
                + (f"; and {len(unreached) - 3} more" * (len(unreached) > 3)),
            )

    def _report(self) -> str:
        lines = []
        for peer in sorted({link.peer_of(self._rank) for link in self._missing}):
            links = sorted(link for link in self._missing if link.peer_of(self._rank) == peer)
            state = self._caller.state_of(links[0]) or "has not called"
            lines.append(f"{self._endpoints[peer].name}: {state}, {len(links)} connections missing")
        if self._awaits_fds and not lines:
            lines.append("the node's lowest rank has not sent its shared memory")
        if self._complete and self._not_ready:
            lines.append(
                f"{name_ranks(sorted(self._not_ready))}: still without connections of their own, "
                "or one that they wait for is"
            )
        elif self._complete:
            lines.append("rank 0 has not said that all ranks are connected")
        lines += [
            f"dropped here {n} times: {reason}"
            for acceptor in self._acceptors
            for reason, n in acceptor.dropped.items()
        ]
        return (
            "; ".join(lines) + ". Look at those ranks' output; where a firewall "
            "or a wrong network is between, set ALLREDUCE_HOST or ALLREDUCE_IFACE"
        )
