"""Sockets, epoll and a store that exist in virtual time only, with the names of the real ones."""

from __future__ import annotations

import array
import errno
import itertools
import os
import select as real_select
import socket as real_socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Any

from .world import Rank, World

_UNIX = real_socket.AF_UNIX
_FIRST = 10_000_000  # numbers of descriptors, used again as the kernel does; none is as large
TCP_DELAY, UNIX_DELAY = 2e-3, 200e-6  # seconds at most, in one direction
SLOW = 0.05  # of the connections take much longer


class Direction:
    """Bytes under way to one end of a connection."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.fds: deque[list[int]] = deque()
        self.last = 0.0  # when the latest of what was sent arrives: nothing overtakes
        self.ended = False  # the writer has closed, and all has arrived
        self.reset = False


class Network:
    """All sockets of a world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.listeners: dict[Any, Socket] = {}
        self.connections: list[Socket] = []  # the callers' ends
        self.ports = itertools.count(20_000)

    def deliver(self, to: Socket, action: Any, lost: Callable[[], None] = lambda: None) -> None:
        """Let something happen at an end of a connection, behind what is under way to it.

        `lost` is called instead where that end is not open any more.
        """
        world, way = self.world, to.incoming
        way.last = max(way.last, world.now + world.delay(to.most_delay))

        def arrive() -> None:
            if to.state == "connected" and not way.reset:
                action(way)
                to.changed()
            else:
                lost()

        world.at(way.last - world.now, arrive)


class Socket:
    """A nonblocking stream socket."""

    def __init__(self, network: Network, family: int, owner: Rank) -> None:
        self.family = family
        taken = {sock.number for sock in owner.owned}
        self.number = next(n for n in itertools.count(_FIRST) if n not in taken)
        self.state = "new"  # listening, connecting, connected, failed, closed
        self.address: Any = None
        self.error = 0
        self.backlog: deque[Socket] = deque()
        self.incoming = Direction()
        self.peer: Socket | None = None
        self.owner = owner
        self.most_delay = UNIX_DELAY if family == _UNIX else TCP_DELAY
        if network.world.random.random() < SLOW:
            self.most_delay *= 50
        self._network = network
        owner.owned.add(self)

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def changed(self) -> None:
        """Wake who may wait for it."""
        self.owner.poke()

    # What the start-up calls.

    def fileno(self) -> int:
        return -1 if self.state == "closed" else self.number

    def setblocking(self, _blocking: bool) -> None:
        pass

    def setsockopt(self, *_: object) -> None:
        self.owner.operate()

    def getsockopt(self, _level: int, option: int, size: int = 0) -> Any:
        if option == real_socket.SO_PEERCRED and size:
            return struct.pack("=iII", 1, os.geteuid(), 0)
        if option == real_socket.SO_ERROR and not size:
            return self.error
        return b"cubic\0"

    def bind(self, address: Any) -> None:
        if self.family != _UNIX:
            address = (address[0], address[1] or next(self._network.ports))
        self.address = address

    def listen(self, _backlog: int) -> None:
        self.state = "listening"
        self._network.listeners[self.family, self.address] = self

    def getsockname(self) -> Any:
        return self.address

    def connect_ex(self, address: Any) -> int:
        self.owner.operate()
        self._network.world.say(f"calls {address}")
        key = (self.family, address)
        if self.family == _UNIX:
            return self._reach(key)
        self.state = "connecting"
        world = self._network.world
        world.at(world.delay(self.most_delay), lambda: self._answered(key))
        return errno.EINPROGRESS

    def _answered(self, key: Any) -> None:
        if self.state == "connecting":
            self.error = self._reach(key)
            self.changed()

    def _reach(self, key: Any) -> int:
        listener = self._network.listeners.get(key)
        if listener is None:
            self.state = "failed"
            return errno.ECONNREFUSED
        other = Socket(self._network, self.family, listener.owner)
        self.peer, other.peer = other, self
        self.state = other.state = "connected"
        self._network.connections.append(self)
        listener.backlog.append(other)
        listener.changed()
        return 0

    def accept(self) -> tuple[Socket, Any]:
        self.owner.operate()
        if not self.backlog:
            raise BlockingIOError
        self._network.world.say(f"accepts at {self.address}")
        return self.backlog.popleft(), ("", 0)

    def send(self, data: bytes) -> int:
        self._check_open()
        size = self._network.world.random.choice((len(data), self._some(len(data))))
        portion = bytes(data[:size])
        assert self.peer is not None
        self._network.deliver(self.peer, lambda way: way.data.extend(portion), self._refused)
        return size

    def sendmsg(self, buffers: list[bytes], ancillary: list[Any]) -> None:
        self._check_open()
        assert self.peer is not None
        copies = [os.dup(fd) for _level, _type, fds in ancillary for fd in fds]
        message = b"".join(buffers)

        def arrive(way: Direction) -> None:
            way.data.extend(message)
            way.fds.append(copies)

        self._network.deliver(self.peer, arrive, lambda: close_all(copies))

    def recv(self, most: int) -> bytes:
        self._check_open()
        way = self.incoming
        if not way.data:
            if way.ended:
                return b""
            raise BlockingIOError
        size = self._some(min(most, len(way.data)))
        data = bytes(way.data[:size])
        del way.data[:size]
        return data

    def recvmsg(self, most: int, _room: int, _flags: int) -> tuple[bytes, list[Any], int, Any]:
        self._check_open()
        way = self.incoming
        if not way.data and not way.ended:
            raise BlockingIOError
        data = bytes(way.data[:most])
        del way.data[:most]
        fds = array.array("i", way.fds.popleft() if way.fds else [])
        ancillary = [(real_socket.SOL_SOCKET, real_socket.SCM_RIGHTS, fds.tobytes())]
        return data, ancillary if fds else [], 0, None

    def detach(self) -> int:
        return self.number

    def close(self) -> None:
        self.owner.operate()
        self.shut()

    # What happens to it.

    def _some(self, most: int) -> int:
        return self._network.world.random.randint(min(1, most), most)

    def _refused(self) -> None:
        """What was sent met a closed end, whose host answers with a reset."""
        self._network.deliver(self, end_with_reset)

    def _check_open(self) -> None:
        self.owner.operate()
        if self.state != "connected":
            raise OSError(errno.ENOTCONN, f"the socket is {self.state}")
        if self.incoming.reset:
            raise ConnectionResetError(errno.ECONNRESET, "reset")

    def shut(self) -> None:
        """Close it, whoever lets go of it."""
        if self.state == "closed":
            return
        state, self.state = self.state, "closed"
        self.owner.owned.discard(self)
        if state == "listening":
            del self._network.listeners[self.family, self.address]
            for waiting in list(self.backlog):
                waiting.shut()
        if state == "connected":
            assert self.peer is not None
            lost = bool(self.incoming.data)
            self._network.deliver(self.peer, end_with_reset if lost else end)
        for fds in self.incoming.fds:
            close_all(fds)
        self.incoming.fds.clear()

    def cut(self) -> None:
        """The connection breaks at both ends; what is under way is lost."""
        for side in (self, self.peer):
            if side is not None and side.state == "connected":
                side.incoming.reset = True
                side.changed()

    def ready(self, wanted: int) -> int:
        """Those of epoll's events that hold."""
        events, way = 0, self.incoming
        if self.state == "listening":
            events = real_select.EPOLLIN if self.backlog else 0
        elif self.state == "failed":
            events = real_select.EPOLLOUT | real_select.EPOLLERR | real_select.EPOLLHUP
        elif self.state == "connected":
            events = real_select.EPOLLOUT
            if way.reset:
                events |= real_select.EPOLLIN | real_select.EPOLLERR | real_select.EPOLLHUP
                events |= real_select.EPOLLRDHUP
            if way.data:
                events |= real_select.EPOLLIN
            if way.ended:
                events |= real_select.EPOLLIN | real_select.EPOLLRDHUP
        return events & (wanted | real_select.EPOLLERR | real_select.EPOLLHUP)


def end(way: Direction) -> None:
    """The writer has closed."""
    way.ended = True


def end_with_reset(way: Direction) -> None:
    """The writer has closed, and has not read all."""
    way.reset = True


def close_all(fds: list[int]) -> None:
    """Real descriptors, of the node's shared memory."""
    for fd in fds:
        os.close(fd)


class Epoll:
    """As select.epoll."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._watched: dict[int, tuple[Socket, int]] = {}

    def register(self, fd: int, events: int) -> None:
        self._forget_closed()
        if fd in self._watched:
            raise FileExistsError(errno.EEXIST, "is watched already")
        self._watched[fd] = (self._socket(fd), events)

    def modify(self, fd: int, events: int) -> None:
        self.unregister(fd)
        self.register(fd, events)

    def unregister(self, fd: int) -> None:
        self._forget_closed()
        if self._watched.pop(fd, None) is None:
            raise FileNotFoundError(errno.ENOENT, "is not watched")

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        me = self._world.me
        me.operate()
        until = float("inf") if timeout < 0 else self._world.now + timeout
        while not (found := self._found()) and self._world.now < until:
            me.wait(until)
        self._world.random.shuffle(found)
        return found

    def close(self) -> None:
        self._watched.clear()

    def _found(self) -> list[tuple[int, int]]:
        self._forget_closed()
        return [
            (fd, ready)
            for fd, (sock, events) in self._watched.items()
            if (ready := sock.ready(events))
        ]

    def _forget_closed(self) -> None:
        """A closed descriptor leaves the set by itself."""
        self._watched = {fd: e for fd, e in self._watched.items() if e[0].state != "closed"}

    def _socket(self, fd: int) -> Socket:
        return next(sock for sock in self._world.me.owned if sock.number == fd)


class Store:
    """A store on a server: each call takes a moment, and none works once the server is gone."""

    MOST = 1e-3  # seconds of a call

    def __init__(self, world: World) -> None:
        self._world = world
        self.gone = False
        self.values: dict[str, bytes] = {}

    def _call(self) -> None:
        self._world.me.sleep(self._world.delay(self.MOST))
        if self.gone:
            raise RuntimeError("Broken pipe")

    def set(self, key: str, value: bytes) -> None:
        self._call()
        self._world.say(f"writes {key}")
        self.values[key] = bytes(value)

    def get(self, key: str) -> bytes:
        self._call()
        self._world.say(f"reads {key}")
        return self.values[key]

    def check(self, keys: list[str]) -> bool:
        self._call()
        return all(key in self.values for key in keys)

    def delete_key(self, key: str) -> bool:
        self._call()
        return self.values.pop(key, None) is not None
