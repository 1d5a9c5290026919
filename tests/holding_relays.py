"""Relays: programs between the two ends of a connection, which hold back what they carry."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from allreduce.communicator import options as communicator_options
from allreduce.rendezvous.connect import Connections

_CHUNK = 64 << 10


class Relay:
    """Carries bytes both ways between a socket and a new one: `free` bytes each way at once, all
    others once `release` was called.

    Whatever ends one side ends the other, behind all that has been carried.
    """

    def __init__(self, descriptor: int, free: int) -> None:
        self._free = free
        with socket.create_server(("127.0.0.1", 0)) as server:
            inner = socket.create_connection(server.getsockname())
            outer, _address = server.accept()
        outer.setblocking(False)
        for sock in (inner, outer):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.descriptor = outer.detach()  # in place of the one that was given
        self._ends = (socket.socket(fileno=descriptor), inner)
        self._go = threading.Event()
        self._over = threading.Event()
        for end in self._ends:
            end.setblocking(True)
        there, back = self._ends, self._ends[::-1]
        self._threads = [
            threading.Thread(target=self._carry, args=way, daemon=True) for way in (there, back)
        ]
        for thread in self._threads:
            thread.start()

    def release(self) -> None:
        """Carry what has come, and all that comes from now on."""
        self._go.set()

    def close(self) -> None:
        """End both connections."""
        self._over.set()
        self._go.set()
        for thread in self._threads:
            thread.join(10)
        for end in self._ends:
            end.close()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        free = self._free
        try:
            while not self._over.is_set():
                if free == 0:
                    self._go.wait()
                if not select.select([source], [], [], 0.05)[0]:
                    continue
                data = source.recv(_CHUNK if free == 0 else free)
                free -= min(free, len(data))
                if not data:
                    target.shutdown(socket.SHUT_WR)
                    return
                target.sendall(data)
        except OSError:  # an end is gone
            for end in (source, target):
                with_nothing(end.shutdown, socket.SHUT_RDWR)


def with_nothing(call: Callable[..., object], *arguments: object) -> None:
    """Call, whatever comes of it."""
    try:
        call(*arguments)
    except OSError:
        return


@contextmanager
def relayed(
    monkeypatch: pytest.MonkeyPatch, rank: int, peer: int, connection: int, free: int = 0
) -> Iterator[Callable[[], Relay]]:
    """Put a relay into one connection that `rank` has with `peer`; yields how to get it.

    connection: index of the data connection; -1 is that of messages.
    free: bytes each way that are not held back.
    """
    relays: list[Relay] = []
    original = communicator_options.connect

    def connect(store: object, own: int, *arguments: object, **options: object) -> Connections:
        connections = original(store, own, *arguments, **options)
        if own == rank:
            relays.append(Relay(connections.data[peer][connection], free))
            connections.data[peer][connection] = relays[-1].descriptor
        return connections

    monkeypatch.setattr(communicator_options, "connect", connect)
    try:
        yield lambda: relays[-1]
    finally:
        for relay in relays:
            relay.close()
