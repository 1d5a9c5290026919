"""The loop that connects one rank with all its peers: calls lower ranks, answers higher ones,
shares the node's memory.

Nothing blocks, so no order of arrival deadlocks. When a rank has all its connections it says so to
rank 0 over its control connection; rank 0 lets all of them go at once. So either every rank has its
mesh, or every rank gets an error: whoever fails closes its connections, and that is noticed at the
other ends.
"""

from __future__ import annotations

import errno
import os
import random
import select
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from allreduce.errors import PeerError, Timeout
from allreduce.rendezvous.acceptor import Acceptor, EventLoop, HandshakeSocket, close_all, same_user
from allreduce.rendezvous.address import Address, set_congestion_control, set_keepalive
from allreduce.rendezvous.handshake import Kind, Link, Rejected, Session, answer, call
from allreduce.rendezvous.shared_memory import Arena
from allreduce.rendezvous.store import name_ranks

_REFUSED_SECONDS = (
    2.0  # a listener exists before its address is published, so it will not come back
)
_REFUSED_PROOFS = 3
_READY, _GO = b"R", b"G"
_GONE = select.EPOLLRDHUP
_RETRY = (errno.EAGAIN, errno.ETIMEDOUT, errno.ECONNRESET, errno.EHOSTUNREACH, errno.ENETUNREACH)


def links_of(rank: int, node_of_rank: Sequence[int], lanes: int) -> list[Link]:
    """Return all connections that end at `rank`; of each pair the higher rank calls."""
    links = []
    for peer, node in enumerate(node_of_rank):
        if peer == rank:
            continue
        low, high = sorted((rank, peer))
        links.append(Link(Kind.CONTROL, 0, high, low))
        if node != node_of_rank[rank]:
            # One for each lane of collectives, and the last for messages.
            links += [Link(Kind.DATA, lane, high, low) for lane in range(lanes + 1)]
        elif low == node_of_rank.index(node):
            links.append(Link(Kind.FDS, 0, high, low))
    return links


@dataclass(slots=True, kw_only=True)
class Endpoint:
    """Where a peer answers, and what to call it in messages."""

    address: Address
    name: str


class _Call:
    """A connection that this rank makes, over as many attempts as it takes."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.sock: socket.socket | None = None
        self.retry_at = 0.0
        self.pause = 0.005
        self.refused_since: float | None = None
        self.refused_proofs = 0
        self.state = "not called yet"

    def attempt_over(self, state: str) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None
        self.state = state
        self.retry_at = time.monotonic() + self.pause * random.uniform(0.5, 1.5)
        self.pause = min(0.5, self.pause * 2)


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
        self._session = session
        self._endpoints = endpoints
        self._congestion, self._loopback = congestion, loopback
        self._dead_after = dead_after
        self._deadline = deadline
        self._arena = arena
        self.sockets: dict[Link, socket.socket] = {}
        self._links = links_of(rank, node_of_rank, lanes)
        self._missing = set(self._links)
        self._awaits_fds = any(link.kind is Kind.FDS and link.src == rank for link in self._links)
        self._calls = [_Call(link) for link in self._links if link.src == rank]
        self._not_ready = set(range(1, self._world_size)) if rank == 0 else set()
        self._complete = False  # this rank has everything
        self._released = False  # all ranks have everything
        self._loop = EventLoop()
        answered = {link for link in self._links if link.dst == rank}
        self._expected = answered
        self._acceptors = [
            Acceptor(self._loop, listener, lambda: answer(session, answered), self._welcome)
            for listener in listeners
        ]

    def run(self) -> None:
        """Connect; returns when all ranks are connected.

        Raises:
            TimeoutError: the deadline passed; the message says who is missing.
            ConnectionError: a peer died, gave up or refused us.
            ValueError: the node's shared memory is not what this rank expects, or a socket option
                is not permitted.
        """
        self._progress()
        while not self._released:
            now = time.monotonic()
            if now >= self._deadline:
                raise Timeout(self._report())
            wake = self._deadline
            for acceptor in self._acceptors:
                acceptor.expire(now)
                wake = min(wake, acceptor.next_expiry())
            for pending in self._calls:
                if pending.sock is None and pending.link in self._missing:
                    if pending.retry_at <= now:
                        self._dial(pending)
                    wake = min(wake, pending.retry_at) if pending.sock is None else wake
            self._loop.turn(wake - time.monotonic())
        self._stop_listening()

    def close(self) -> None:
        """Close everything this rank has opened so far."""
        self._stop_listening()
        close_all([*self.sockets.values(), *(c.sock for c in self._calls if c.sock is not None)])
        self.sockets = {}

    def _stop_listening(self) -> None:
        for acceptor in self._acceptors:
            acceptor.close()
        self._loop.close()

    # Calling.

    def _endpoint(self, link: Link) -> Endpoint:
        return self._endpoints[link.peer_of(self._rank)]

    def _dial(self, pending: _Call) -> None:
        family, address = self._endpoint(pending.link).address
        sock = socket.socket(family, socket.SOCK_STREAM)
        pending.sock = sock
        sock.setblocking(False)
        if family != socket.AF_UNIX:
            set_congestion_control(sock, self._congestion, self._loopback)
        pending.state = "no connection"
        status = sock.connect_ex(address)
        if status == errno.EINPROGRESS:
            self._loop.watch(
                sock.fileno(), select.EPOLLOUT, lambda _events: self._connected(pending)
            )
        else:
            self._connected(pending, status)

    def _connected(self, pending: _Call, status: int | None = None) -> None:
        sock = pending.sock
        assert sock is not None
        if status is None:
            status = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if status:
            self._failed(pending, status)
            return
        pending.refused_since = None
        if not same_user(sock):
            self._again(pending, "somebody else's process answers there")
            return
        pending.state = "connected, handshake unfinished"
        self._advance(pending, HandshakeSocket(sock, call(self._session, pending.link)))

    def _advance(self, pending: _Call, connection: HandshakeSocket) -> None:
        try:
            link = connection.advance()
        except Rejected as reason:
            self._again(pending, str(reason))
        except OSError as error:
            self._closed_on_us(pending, connection, error)
        else:
            if link is None:
                self._loop.watch(
                    connection.sock.fileno(),
                    connection.events,
                    lambda _events: self._advance(pending, connection),
                )
                return
            self._loop.forget(connection.sock.fileno())
            pending.sock = None  # it is the mesh's now
            self._welcome(link, connection.sock)

    def _failed(self, pending: _Call, status: int) -> None:
        peer, name, cause = pending.link.dst, self._endpoint(pending.link).name, os.strerror(status)
        if status == errno.ECONNREFUSED:
            now = time.monotonic()
            pending.refused_since = pending.refused_since or now
            if now - pending.refused_since > _REFUSED_SECONDS:
                raise PeerError(
                    f"{name} no longer listens although it was there: it has died or given up (see "
                    "its output), or it runs on another machine that looks like this one (then set "
                    "ALLREDUCE_NODES)",
                    peer,
                )
        elif status not in _RETRY:
            raise PeerError(
                f"cannot connect to {name}: {cause}; set ALLREDUCE_HOST or ALLREDUCE_IFACE on that "
                "rank to a network that all ranks reach",
                peer,
            )
        self._again(pending, f"no connection ({cause})")

    def _closed_on_us(self, pending: _Call, connection: HandshakeSocket, error: OSError) -> None:
        if connection.replies:  # it has seen our proof
            pending.refused_proofs += 1
        if pending.refused_proofs >= _REFUSED_PROOFS:
            raise PeerError(
                f"{self._endpoint(pending.link).name} closed the connection {_REFUSED_PROOFS} "
                "times during the handshake: it is shutting down, or its ALLREDUCE_SECRET_FILE or "
                "ALLREDUCE_SECRET differs",
                pending.link.dst,
            )
        self._again(pending, f"handshake broken off ({error.strerror or error})")

    def _again(self, pending: _Call, state: str) -> None:
        if pending.sock is not None:
            self._loop.forget(pending.sock.fileno())
        pending.attempt_over(state)

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
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            set_keepalive(sock, self._dead_after)
        if link.kind is Kind.FDS and link.dst == self._rank:
            self._arena.send(sock)

    def _reader(self, link: Link) -> Callable[[Link], None] | None:
        """Return what reads from this connection before it is handed over; None: nothing does."""
        if link.kind is Kind.FDS and link.src == self._rank:
            return self._take_fds
        if link.kind is Kind.CONTROL and link.dst == 0:
            return self._take_ready if self._rank == 0 else self._take_go
        return None

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
        self._released = self._read_byte(link) == _GO

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
        if not self._missing and not self._awaits_fds and not self._complete:
            self._complete = True
            if self._rank != 0:
                self._say(Link(Kind.CONTROL, 0, self._rank, 0), _READY)
        if self._rank == 0 and self._complete and not self._not_ready:
            for peer in range(1, self._world_size):
                self._say(Link(Kind.CONTROL, 0, peer, 0), _GO)
            self._released = True

    def _say(self, link: Link, word: bytes) -> None:
        try:
            self.sockets[link].send(word)
        except OSError:
            self._hung_up(link)

    def _hung_up(self, link: Link) -> None:
        """A peer closed. Once this rank is complete, others may be released and done already."""
        peer = link.peer_of(self._rank)
        to_root = link.kind is Kind.CONTROL and 0 in (self._rank, peer)
        if self._complete and self._rank != 0 and not to_root:
            self._loop.forget(self.sockets[link].fileno())
            return
        if not self._released:
            raise PeerError(
                f"{self._endpoints[peer].name} closed its {link.kind.name.lower()} connection "
                "during start-up: it has died or given up; its own output says why",
                peer,
            )

    # What to say at the deadline.

    def _report(self) -> str:
        lines = []
        state_of = {pending.link: pending.state for pending in self._calls}
        for peer in sorted({link.peer_of(self._rank) for link in self._missing}):
            links = sorted(link for link in self._missing if link.peer_of(self._rank) == peer)
            state = state_of.get(links[0], "has not called")
            lines.append(f"{self._endpoints[peer].name}: {state}, {len(links)} connections missing")
        if self._awaits_fds and not lines:
            lines.append("the node's lowest rank has not sent its shared memory")
        if self._complete and self._rank == 0:
            lines.append(
                f"{name_ranks(sorted(self._not_ready))}: still without connections of their own"
            )
        elif self._complete:
            lines.append("rank 0 has not said that all ranks are connected")
        lines += [
            f"dropped here {n} times: {reason}"
            for acceptor in self._acceptors
            for reason, n in acceptor.dropped.items()
        ]
        return (
            "start-up not complete by the deadline. "
            + "; ".join(lines)
            + ". Look at those ranks' output; where a firewall "
            "or a wrong network is between, set ALLREDUCE_HOST or ALLREDUCE_IFACE"
        )
