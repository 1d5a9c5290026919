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
import errno
import logging
import math
import os
import select
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Protocol

from allreduce.errors import PeerError, SystemCallError
from allreduce.rendezvous.acceptor import BUDGET_SECONDS, Acceptor, EventLoop, close_all
from allreduce.rendezvous.address import congestion_control, tune
from allreduce.rendezvous.caller import Caller, Endpoint, NoAnswer, Refused
from allreduce.rendezvous.handshake import Kind, Link, Session, answer

__all__ = ["Connector", "Group"]

log = logging.getLogger("allreduce")

# Seconds. A crowded machine loses a call now and then, and the kernel repeats it after 1, 3, 7.
_LOST_CALLS = 10.0
_PAUSE = 0.05
_BUDGET_OF_A_RANK = 0.02  # more time for handshakes: where ranks are many, each may be slow
_SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)


class Group(Protocol):
    """What a connector needs of the core's group."""

    def take_requests(self) -> list[int]:
        """Return the ranks that the core wants a connection to since the last time."""
        ...

    def connect(self, rank: int, descriptors: list[int], /) -> None:
        """Take ownership of the connected sockets to `rank`: one per lane, one for messages."""
        ...

    def give_up(self, rank: int, reason: str, unanswered: bool, closed: bool) -> None:
        """Hear that `rank` cannot be reached: its host is silent, or it listens no more, or why."""
        ...

    def pass_on(self) -> bool:
        """Pass on what comes over the control connections and others must hear; False: another
        thread does that just now.
        """
        ...

    def abort(self, reason: str, /) -> None:
        """Hear that no more connections can be made at all."""
        ...


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
            self._loop,
            listener,
            lambda: answer(session, self._answered),
            self._welcome,
            max(BUDGET_SECONDS, _BUDGET_OF_A_RANK * len(endpoints)),
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
            # The secret is right, or the start-up would have failed: this process is slow.
            refused_proofs=math.inf,
            needless=lambda link: link.peer_of(rank) in self._connected,
        )
        self._pairs: dict[int, dict[int, socket.socket]] = {}  # half connected: peer, lane
        self._requests: dict[int, socket.socket] = {}
        self._called: set[int] = set()
        self._connected: set[int] = set()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._look_at, self._pause = math.inf, _PAUSE  # at the control connections once more
        self._closing = self._ends_alone = False
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
        thread = threading.Thread(target=self._run, name="allreduce-connect", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise SystemCallError(
                errno.EAGAIN,
                f"rank {self._rank} cannot start the thread that connects it (raise ulimit -u, or "
                "the container's limit of pids)",
            ) from error
        self._thread = thread

    def close(self) -> None:
        """Connect nobody any more; what was handed to the group is the group's. Idempotent."""
        if self._closing:
            return
        self._closing = True
        if self._thread is None:
            self._close_sockets()
        elif self._thread is threading.current_thread():  # the garbage collector's choice
            self._ends_alone = True
            return
        else:
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
            if self._ends_alone:
                os.close(self._wake)

    def _turn(self) -> None:
        try:
            now = time.monotonic()
            self._acceptor.expire(now)
            self._caller.dial(now)
            if now >= self._look_at:
                self._pass_on()
            wake = min(self._acceptor.next_expiry(), self._caller.next_call(), self._look_at)
            self._loop.turn(None if wake == math.inf else wake - time.monotonic())
        except PeerError as error:
            self._give_up(error)
            self._pass_on()  # the rest of the loop's turn is lost
        except OSError as error:
            if error.errno not in _SCARCE:
                raise
            log.warning("rank %d cannot connect for now: %s", self._rank, error)
            time.sleep(_PAUSE)
            self._pass_on()

    def _pass_on(self) -> None:
        if self._group is None or self._group.pass_on():
            self._look_at, self._pause = math.inf, _PAUSE
        else:  # whoever drives the group may be about to stop, and leave what has just come
            self._look_at = time.monotonic() + self._pause
            self._pause = min(1.0, 2 * self._pause)

    def _take_requests(self) -> None:
        assert self._group is not None
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        for peer in self._group.take_requests():
            self._connect(peer)

    def _connect(self, peer: int) -> None:
        """Call the peer, or ask it to call; once."""
        if peer in self._called or peer in self._connected:
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
        tune(sock, self._dead_after, self._loopback)
        if link.kind is Kind.REQUEST:
            self._take_request(peer, sock)
        else:
            self._take_data(peer, link.lane, sock)

    def _take_request(self, peer: int, sock: socket.socket) -> None:
        """Keep a request until the higher rank closes it, which knows that both are connected."""
        self._forget_request(peer)
        if peer < self._rank and peer in self._connected:  # it has asked before it was called
            sock.close()
            return
        self._requests[peer] = sock
        self._loop.watch(
            sock.fileno(), select.EPOLLRDHUP, lambda _events: self._request_ended(peer)
        )
        if peer < self._rank:
            self._connect(peer)

    def _take_data(self, peer: int, lane: int, sock: socket.socket) -> None:
        if peer in self._connected:
            sock.close()
            return
        sockets = self._pairs.setdefault(peer, {})
        if lane in sockets:  # its caller has not heard that it was welcome
            sockets[lane].close()
        sockets[lane] = sock
        if len(sockets) == len(self._lanes):
            self._hand_over(peer)

    def _hand_over(self, peer: int) -> None:
        assert self._group is not None
        sockets = self._pairs.pop(peer)
        self._connected.add(peer)
        self._answered.difference_update(self._links(peer, peer, self._rank))
        self._group.connect(peer, [sockets[lane].detach() for lane in self._lanes])
        if peer < self._rank:
            self._forget_request(peer)

    def _request_ended(self, peer: int) -> None:
        self._forget_request(peer)
        if peer not in self._connected:
            self._give_up(Refused(f"rank {peer} has closed its connection", peer))

    def _give_up(self, error: PeerError) -> None:
        """Let the core know, and the peer that may have asked; it may ask again."""
        assert self._group is not None
        peer = error.rank
        self._caller.give_up(peer)
        self._called.discard(peer)
        close_all(list(self._pairs.pop(peer, {}).values()))
        if peer in self._requests:
            log.warning("rank %d cannot connect to rank %d: %s", self._rank, peer, error)
            self._forget_request(peer)
        self._group.give_up(
            peer, str(error), isinstance(error, NoAnswer), isinstance(error, Refused)
        )

    def _forget_request(self, peer: int) -> None:
        if sock := self._requests.pop(peer, None):
            self._loop.forget(sock.fileno())
            sock.close()

    def _close_sockets(self) -> None:
        # The loop first: its epoll set may be a parent's too, in which all must stay registered.
        self._loop.close()
        self._group = None
        self._acceptor.close()
        self._caller.close()
        for sockets in self._pairs.values():
            close_all(list(sockets.values()))
        close_all(list(self._requests.values()))
        self._pairs.clear()
        self._requests.clear()
