"""Nonblocking sockets in one event loop: handshakes, and the acceptor that drops strangers."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import struct
import time
from collections.abc import Callable

from allreduce.rendezvous.handshake import NOT_EXPECTED, Dialogue, Link, Rejected

BUDGET_SECONDS = 5.0  # from accept to welcome
GRACE_SECONDS = 0.05  # to say hello while others wait
BUDGET_PENDING = 64  # connections that have proved nothing yet
_MADE_ROOM, _LEFT = "made room for others", "left during the handshake"
_HARMLESS = (_MADE_ROOM, _LEFT)  # happens to honest callers too, who call again
_UCRED = struct.Struct("=iII")  # pid, uid, gid

log = logging.getLogger("allreduce")


class EventLoop:
    """An epoll set whose descriptors each have a handler. Owned by one thread."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        # Watched anew in this turn: an event of the same turn may belong to a closed descriptor
        # of the same number, and what it says would be held against the wrong connection.
        self._fresh: set[int] = set()

    def watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        """Call `handler(events)` when `fd` is ready; replaces an earlier handler."""
        if fd in self._handlers:
            try:
                self._epoll.modify(fd, events)
            except FileNotFoundError:  # closed by its owner, and the number has come again
                self._epoll.register(fd, events)
        else:
            self._epoll.register(fd, events)
        self._handlers[fd] = handler
        self._fresh.add(fd)

    def forget(self, fd: int) -> None:
        """Stop watching `fd`; unknown descriptors are ignored."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def turn(self, timeout: float | None) -> None:
        """Wait up to `timeout` seconds (None: for ever) and run what is ready."""
        ready = self._epoll.poll(-1 if timeout is None else max(0.0, timeout))
        self._fresh.clear()
        for fd, events in ready:
            handler = self._handlers.get(fd)
            if handler is not None and fd not in self._fresh:
                handler(events)

    def close(self) -> None:
        """Close the epoll set, not the descriptors in it."""
        self._handlers.clear()
        self._epoll.close()


class HandshakeSocket:
    """One side of a dialogue on a nonblocking socket."""

    def __init__(self, sock: socket.socket, dialogue: Dialogue) -> None:
        self.sock = sock
        self.born = time.monotonic()
        self.replies = 0  # of ours; an answerer's first reply means that the hello was valid
        self._dialogue = dialogue
        self._received = bytearray()
        self._to_send, self._wanted = next(dialogue)

    @property
    def events(self) -> int:
        """What the loop must wait for."""
        return select.EPOLLOUT if self._to_send else select.EPOLLIN

    def advance(self) -> Link | None:
        """Go on as far as possible; return the proved link at the end.

        Raises:
            Rejected: the other side failed the handshake.
            OSError: the connection broke (ConnectionResetError when it was closed).
        """
        while True:
            try:
                if self._to_send:
                    self._to_send = self._to_send[self.sock.send(self._to_send) :]
                    continue
                if len(self._received) < self._wanted:
                    data = self.sock.recv(self._wanted - len(self._received))
                    if not data:
                        raise ConnectionResetError(errno.ECONNRESET, "closed during the handshake")
                    self._received += data
                    continue
            except BlockingIOError:
                return None
            message, self._received = bytes(self._received), bytearray()
            try:
                self._to_send, self._wanted = self._dialogue.send(message)
            except StopIteration as end:
                link: Link = end.value
                return link
            self.replies += 1


def handshake_until(sock: socket.socket, dialogue: Dialogue, deadline: float) -> Link:
    """Run one dialogue alone on a nonblocking socket; raises TimeoutError at `deadline`."""
    connection = HandshakeSocket(sock, dialogue)
    poller = select.poll()
    while (link := connection.advance()) is None:
        poller.register(sock, connection.events)
        if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError("no answer to the handshake")
    return link


class Acceptor:
    """Accepts on one listener, lets those in who prove themselves within the budget, drops
    everybody else.

    When the budget is full, the oldest connection that had time to say hello and did not makes
    room; a valid hello needs the group id, which strangers do not have. Where all have said it,
    accepting pauses and the backlog waits.
    """

    def __init__(
        self,
        loop: EventLoop,
        listener: socket.socket,
        dialogue: Callable[[], Dialogue],
        welcome: Callable[[Link, socket.socket], None],
        budget: float = BUDGET_SECONDS,
    ) -> None:
        self._loop = loop
        self._budget = budget
        self._listener = listener
        self._dialogue = dialogue
        self._welcome = welcome
        self._pending: dict[int, HandshakeSocket] = {}  # in order of arrival
        self._paused = True
        self._closed = False
        self.dropped: dict[str, int] = {}  # reason -> times
        self._resume()

    def next_expiry(self) -> float:
        """Return the time (monotonic) at which `expire` has something to do."""
        oldest = next(iter(self._pending.values()), None)
        if oldest is None:
            return float("inf")
        silent = next((c for c in self._pending.values() if c.replies == 0), None)
        if self._paused and silent is not None:
            return silent.born + GRACE_SECONDS
        return oldest.born + self._budget

    def expire(self, now: float) -> None:
        """Drop whoever ran out of time."""
        if self._paused:
            self._evict(now)
        expired = [c for c in self._pending.values() if now >= c.born + self._budget]
        for connection in expired:
            self._drop(connection, "no handshake within the time allowed")

    def close(self) -> None:
        """Close the listener and whatever is pending. May be called twice, and from `welcome`."""
        self._closed = True
        self._loop.forget(self._listener.fileno())
        self._listener.close()
        for connection in self._pending.values():
            self._loop.forget(connection.sock.fileno())
            connection.sock.close()
        self._pending.clear()

    def _resume(self) -> None:
        if self._paused and not self._closed:
            self._paused = False
            self._loop.watch(self._listener.fileno(), select.EPOLLIN, self._accept)

    def _accept(self, _events: int) -> None:
        while not self._closed:
            if len(self._pending) >= BUDGET_PENDING and not self._evict(time.monotonic()):
                self._paused = True
                self._loop.forget(self._listener.fileno())
                return
            try:
                sock, _address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    raise
                continue  # the caller left before we came to it
            sock.setblocking(False)
            connection = HandshakeSocket(sock, self._dialogue())
            self._pending[sock.fileno()] = connection
            if not same_user(sock):
                self._drop(connection, "another user")
                continue
            self._advance(connection)

    def _evict(self, now: float) -> bool:
        for connection in self._pending.values():
            if connection.replies == 0 and now >= connection.born + GRACE_SECONDS:
                self._drop(connection, _MADE_ROOM)
                return True
        return False

    def _advance(self, connection: HandshakeSocket) -> None:
        try:
            link = connection.advance()
        except Rejected as reason:
            self._drop(connection, str(reason))
        except OSError:
            self._drop(connection, _LEFT)
        else:
            if link is None:
                self._loop.watch(
                    connection.sock.fileno(),
                    connection.events,
                    lambda _events: self._advance(connection),
                )
                return
            self._release(connection)
            self._welcome(link, connection.sock)

    def _release(self, connection: HandshakeSocket) -> None:
        del self._pending[connection.sock.fileno()]
        self._loop.forget(connection.sock.fileno())
        self._resume()

    def _drop(self, connection: HandshakeSocket, reason: str) -> None:
        self._release(connection)
        connection.sock.close()
        if reason not in self.dropped and len(self.dropped) < 16:  # strangers do not fill the log
            harmless = reason in _HARMLESS or reason.endswith(NOT_EXPECTED)
            log.log(
                logging.DEBUG if harmless else logging.WARNING, "dropped a connection: %s", reason
            )
        if reason in self.dropped or len(self.dropped) < 16:
            self.dropped[reason] = self.dropped.get(reason, 0) + 1


def same_user(sock: socket.socket) -> bool:
    """Tell whether a Unix socket's peer runs as this user; TCP has no such check and passes."""
    if sock.family != socket.AF_UNIX:
        return True
    _pid, uid, _gid = _UCRED.unpack(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    )
    return bool(uid == os.geteuid())


def close_all(sockets: list[socket.socket]) -> None:
    """Close every socket, whatever the others say."""
    for sock in sockets:
        with contextlib.suppress(OSError):
            sock.close()
