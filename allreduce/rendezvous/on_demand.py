"""Connections between nodes that are made at their first use, while the group is at work.

Of each pair the higher rank calls, as at start-up. Where the lower one needs the pair first, it
asks the higher one to call: it opens a connection of kind REQUEST, which carries nothing. The
higher rank closes that once the pair is connected, so both notice when the other one dies
meanwhile.

A thread answers and calls, for a rank may be busy with something else when a peer needs it. The
same thread passes on what comes over the control connections while no call of the rank does. The
listener stays open as long as the group. It admits ranks of the group only, each link once.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from allreduce.errors import PeerError
from allreduce.rendezvous.acceptor import Acceptor, EventLoop, close_all
from allreduce.rendezvous.address import congestion_control, set_keepalive
from allreduce.rendezvous.caller import Caller, Endpoint, NoAnswer
from allreduce.rendezvous.handshake import Kind, Link, Session, answer

__all__ = ["Connector", "Group"]

log = logging.getLogger("allreduce")

# Seconds. A crowded machine loses a call now and then, and the kernel repeats it after 1, 3, 7.
_LOST_CALLS = 10.0
_ONCE_MORE = 0.05  # seconds


class Group(Protocol):
    """What a connector needs of the core's group."""

    def take_requests(self) -> list[int]:
        """Return the ranks that the core wants a connection to since the last time."""
        ...

    def connect(self, rank: int, descriptors: list[int], /) -> None:
        """Take ownership of the connected sockets to `rank`: one per lane, one for messages."""
        ...

    def give_up(self, rank: int, reason: str, unanswered: bool) -> None:
        """Hear that `rank` cannot be reached."""
        ...

    def pass_on(self) -> bool:
        """Pass on what comes over the control connections and others must hear; False: another
        thread does that just now.
        """
        ...

    def abort(self, reason: str, /) -> None:
        """Hear that no more connections can be made at all."""
        ...


@dataclass(slots=True)
class _Pair:
    """The connections to one peer that are being made."""

    sockets: dict[int, socket.socket]  # by lane
    request: socket.socket | None = None


class Connector:
    """Connects one rank with peers on other nodes. Use: construct, `start`, `close`."""

    def __init__(
        self,
        *,
        rank: int,
        node_of_rank: Sequence[int],
        lanes: int,
        session: Session,
        listener: socket.socket,
        endpoints: Sequence[Endpoint],
        congestion: str | None,
        loopback: bool,
        dead_after: float,
    ) -> None:
        self._rank = rank
        self._lanes = range(lanes + 1)  # the last is for messages
        self.congestion = congestion_control(listener)  # which accepted sockets inherit
        self._dead_after, self._loopback = dead_after, loopback
        self._loop = EventLoop()
        node = node_of_rank[rank]
        others = [peer for peer, other in enumerate(node_of_rank) if other != node]
        self._answered = {link for peer in others for link in self._links(peer, peer, rank)}
        self._acceptor = Acceptor(
            self._loop, listener, lambda: answer(session, self._answered), self._welcome
        )
        self._caller = Caller(
            loop=self._loop,
            session=session,
            endpoints=endpoints,
            congestion=congestion,
            loopback=loopback,
            welcome=self._welcome,
            refused_for=0.0,  # whoever was in the group and does not listen has left it
            unanswered_for=math.inf if loopback else max(dead_after, _LOST_CALLS),
        )
        self._pairs: dict[int, _Pair] = {}
        self._called: set[int] = set()
        self._connected: set[int] = set()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._once_more_at = math.inf
        self._closing = False
        self._group: Group | None = None
        self._thread: threading.Thread | None = None

    @property
    def wake_fd(self) -> int:
        """A descriptor of its own, by which the core tells that it has requests."""
        return os.dup(self._wake)

    def start(self, group: Group, control: Iterable[int]) -> None:
        """Connect for this group from now on. `control`: its control connections, which the group
        closes, but not before this.
        """
        self._group = group
        for fd in control:
            self._loop.watch(fd, select.EPOLLIN | select.EPOLLET, lambda _events: self._pass_on())
        self._loop.watch(self._wake, select.EPOLLIN, lambda _events: self._take_requests())
        self._thread = threading.Thread(target=self._run, name="allreduce-connect", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Connect nobody any more; what was handed to the group is the group's. Idempotent."""
        if self._closing:
            return
        self._closing = True
        if self._thread is None:
            self._close_sockets()
        elif self._thread is not threading.current_thread():  # the garbage collector's choice
            os.eventfd_write(self._wake, 1)
            self._thread.join()
        os.close(self._wake)

    def leave_child(self) -> None:
        """In a forked child, which has not the thread: close the child's descriptors."""
        if not self._closing:
            self._closing = True
            self._close_sockets()
            os.close(self._wake)

    # The thread.

    def _run(self) -> None:
        assert self._group is not None
        try:
            while not self._closing:
                self._turn()
        except Exception as error:
            log.debug("rank %d can make no more connections", self._rank, exc_info=True)
            self._group.abort(f"rank {self._rank} can make no more connections: {error}")
        finally:
            self._close_sockets()

    def _turn(self) -> None:
        try:
            now = time.monotonic()
            self._acceptor.expire(now)
            self._caller.dial(now)
            if now >= self._once_more_at:
                self._once_more_at = math.inf
                self._pass_on(once_more=False)
            wake = min(self._acceptor.next_expiry(), self._caller.next_call(), self._once_more_at)
            self._loop.turn(None if wake == math.inf else wake - time.monotonic())
        except PeerError as error:
            self._give_up(error.rank, str(error), isinstance(error, NoAnswer))

    def _pass_on(self, once_more: bool = True) -> None:
        # Whoever drives the group may be about to stop, and leave what has just come.
        if self._group is not None and not self._group.pass_on() and once_more:
            self._once_more_at = time.monotonic() + _ONCE_MORE

    def _take_requests(self) -> None:
        assert self._group is not None
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        for peer in self._group.take_requests():
            self._connect(peer)

    def _connect(self, peer: int) -> None:
        """Call the peer, or ask it to call; once."""
        if peer in self._called:
            return
        self._called.add(peer)
        for link in self._links(peer, self._rank, peer):
            self._caller.call(link)

    def _links(self, peer: int, src: int, dst: int) -> list[Link]:
        """Return the links between the two ranks that `src` calls."""
        if src > dst:
            return [Link(Kind.DATA, lane, src, dst) for lane in self._lanes]
        return [Link(Kind.REQUEST, 0, src, dst)]

    def _welcome(self, link: Link, sock: socket.socket) -> None:
        peer = link.peer_of(self._rank)
        if peer in self._connected:  # it has asked, and was called before that came
            sock.close()
            return
        if not self._loopback:
            set_keepalive(sock, self._dead_after)
        pair = self._pairs.setdefault(peer, _Pair({}))
        if link.kind is Kind.REQUEST:
            if pair.request is not None:  # it asks once more
                self._drop(pair)
            pair.request = sock
            watch = select.EPOLLRDHUP
            self._loop.watch(sock.fileno(), watch, lambda _events: self._request_ended(peer))
            if link.dst == self._rank:
                self._connect(peer)
        else:
            self._answered.discard(link)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair.sockets[link.lane] = sock
        if len(pair.sockets) == len(self._lanes):
            self._hand_over(peer)

    def _hand_over(self, peer: int) -> None:
        assert self._group is not None
        pair = self._pairs.pop(peer)
        self._connected.add(peer)
        self._group.connect(peer, [pair.sockets[lane].detach() for lane in self._lanes])
        self._drop(pair)

    def _request_ended(self, peer: int) -> None:
        self._give_up(peer, f"rank {peer} has closed its connection", unanswered=False)

    def _give_up(self, peer: int, reason: str, unanswered: bool) -> None:
        assert self._group is not None
        self._caller.give_up(peer)
        if pair := self._pairs.pop(peer, None):
            self._drop(pair)
        self._group.give_up(peer, reason, unanswered)

    def _drop(self, pair: _Pair) -> None:
        if pair.request is not None:
            self._loop.forget(pair.request.fileno())
            pair.request.close()
            pair.request = None
        close_all(list(pair.sockets.values()))

    def _close_sockets(self) -> None:
        # The loop first: its epoll set may be a parent's too, in which all must stay registered.
        self._loop.close()
        self._group = None
        self._acceptor.close()
        self._caller.close()
        for pair in self._pairs.values():
            close_all([*pair.sockets.values(), *([pair.request] if pair.request else [])])
        self._pairs.clear()
