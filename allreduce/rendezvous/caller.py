"""Calls other ranks, as often as it takes, and proves who this rank is."""

from __future__ import annotations

import errno
import math
import os
import random
import select
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from allreduce.errors import PeerError
from allreduce.rendezvous.acceptor import EventLoop, HandshakeSocket, same_user
from allreduce.rendezvous.address import Address, set_congestion_control
from allreduce.rendezvous.handshake import Link, Rejected, Session, call
from allreduce.rendezvous.interfaces import interface_of

_NO_WAY = "no connection"
_SYN_SENT = 2  # a state of TCP
_RETRY = (errno.EAGAIN, errno.ETIMEDOUT, errno.ECONNRESET)
_NO_ROUTE = (errno.EHOSTUNREACH, errno.ENETUNREACH)


class NoAnswer(PeerError):
    """The peer's host does not answer."""


class Refused(PeerError):
    """The peer does not listen any more."""


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
        self.unanswered_since = math.inf
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


def _waits_for_host(sock: socket.socket | None) -> bool:
    """Tell whether the other host has yet to answer: the kernel knows, however late this one is."""
    if sock is None:
        return True
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _SYN_SENT


class Caller:
    """The calls of one rank, in an event loop that its owner turns. Each that a peer welcomes goes
    to `welcome`.

    `dial`, and what runs in the loop, raise PeerError where a peer cannot be reached for good.
    """

    def __init__(
        self,
        *,
        loop: EventLoop,
        session: Session,
        endpoints: Sequence[Endpoint],
        congestion: str | None,
        loopback: bool,
        welcome: Callable[[Link, socket.socket], None],
        refused_for: float = 2.0,
        no_route_for: float = 10.0,
        unanswered_for: float = math.inf,
        refused_proofs: float = 3,
        needless: Callable[[Link], bool] = lambda link: False,
    ) -> None:
        """Call nobody yet.

        Args:
            refused_for, no_route_for, unanswered_for: seconds after which a peer is given up whose
                host refuses calls, cannot be reached, or does not answer them. (A listener is there
                before its address is known.)
            refused_proofs: how often a peer may end the handshake behind this rank's proof.
            needless: whether a call need not be made, or not once more.
        """
        self._loop = loop
        self._session = session
        self._endpoints = endpoints
        self._congestion, self._loopback = congestion, loopback
        self._welcome = welcome
        self._refused_for, self._unanswered_for = refused_for, unanswered_for
        self._no_route_for = no_route_for
        self._refused_proofs = refused_proofs
        self._needless = needless
        self._calls: dict[Link, _Call] = {}  # those that nobody has welcomed yet

    def call(self, link: Link) -> None:
        """Make this connection, from the next `dial` on."""
        self._calls[link] = _Call(link)

    def dial(self, now: float) -> None:
        """Call whoever is to be called by now."""
        for pending in list(self._calls.values()):
            if pending.sock is None and self._needless(pending.link):
                del self._calls[pending.link]
                continue
            late = now - pending.unanswered_since >= self._unanswered_for
            if late and _waits_for_host(pending.sock):
                raise NoAnswer(
                    f"the host of {self._endpoints[pending.link.dst].name} has not answered for "
                    f"{self._unanswered_for:g} s",
                    pending.link.dst,
                )
            if pending.sock is None and pending.retry_at <= now:
                self._dial(pending)

    def next_call(self) -> float:
        """Return the time (monotonic) at which `dial` has something to do."""
        waiting = (
            c.retry_at if c.sock is None else c.unanswered_since + self._unanswered_for
            for c in self._calls.values()
        )
        return min(waiting, default=math.inf)

    def state_of(self, link: Link) -> str:
        """Say how far the call of this connection is; "" if there is none."""
        return self._calls[link].state if link in self._calls else ""

    def unreached(self) -> list[str]:
        """Return the peers to whose hosts there is no connection, and why, in words."""
        found = {c.link.dst: c.state for c in self._calls.values() if c.state.startswith(_NO_WAY)}
        return [f"{self._endpoints[peer].name}: {state}" for peer, state in found.items()]

    def give_up(self, peer: int) -> None:
        """Call this peer no more."""
        for link in [link for link in self._calls if link.dst == peer]:
            sock = self._calls.pop(link).sock
            if sock is not None:
                self._loop.forget(sock.fileno())
                sock.close()

    def close(self) -> None:
        """Call nobody any more. The loop may be closed already."""
        for pending in self._calls.values():
            if pending.sock is not None:
                pending.sock.close()
        self._calls.clear()

    def _dial(self, pending: _Call) -> None:
        family, address = self._endpoints[pending.link.dst].address
        sock = socket.socket(family, socket.SOCK_STREAM)
        pending.sock = sock
        sock.setblocking(False)
        if family != socket.AF_UNIX:
            set_congestion_control(sock, self._congestion, self._loopback)
        pending.state = _NO_WAY
        if pending.unanswered_since == math.inf:
            pending.unanswered_since = time.monotonic()
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
        if status in (0, errno.ECONNREFUSED):
            pending.unanswered_since = math.inf
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
            del self._calls[link]  # from here on the socket is `welcome`'s
            self._welcome(link, connection.sock)

    def _failed(self, pending: _Call, status: int) -> None:
        peer, name, cause = (
            pending.link.dst,
            self._endpoints[pending.link.dst].name,
            os.strerror(status),
        )
        now = time.monotonic()
        no_way = status in _NO_ROUTE and now - pending.unanswered_since > self._no_route_for
        if status == errno.ECONNREFUSED:
            pending.refused_since = pending.refused_since or now
            if now - pending.refused_since > self._refused_for:
                raise Refused(
                    f"{name} no longer listens although it was there: it has died or given up (see "
                    f"its output), or {self._what_else_refuses(peer)}",
                    peer,
                )
        elif no_way or status not in (*_RETRY, *_NO_ROUTE):
            raise PeerError(
                f"cannot connect to {name}: {cause}; set ALLREDUCE_HOST or ALLREDUCE_IFACE on that "
                "rank to a network that all ranks reach",
                peer,
            )
        self._again(pending, f"{_NO_WAY} ({cause})")

    def _what_else_refuses(self, peer: int) -> str:
        """Say what else it may be if nobody listens where the peer has published that it does."""
        family, address = self._endpoints[peer].address
        if family == socket.AF_UNIX:
            return "it runs on another machine that looks like this one (then set ALLREDUCE_NODES)"
        remedy = "(then set ALLREDUCE_IFACE or ALLREDUCE_HOST on that rank)"
        if (own := interface_of(address[0])) and not self._loopback:
            return f"{own} of this rank's own host has the same address {remedy}"
        return f"its address leads to another host here {remedy}"

    def _closed_on_us(self, pending: _Call, connection: HandshakeSocket, error: OSError) -> None:
        if connection.replies:  # it has seen our proof
            pending.refused_proofs += 1
        if pending.refused_proofs >= self._refused_proofs:
            name = self._endpoints[pending.link.dst].name
            raise PeerError(
                f"{name} closed the connection {pending.refused_proofs} "
                "times during the handshake: it is shutting down, or its ALLREDUCE_SECRET_FILE or "
                "ALLREDUCE_SECRET differs",
                pending.link.dst,
            )
        self._again(pending, f"handshake broken off ({error.strerror or error})")

    def _again(self, pending: _Call, state: str) -> None:
        if pending.sock is not None:
            self._loop.forget(pending.sock.fileno())
        pending.attempt_over(state)
