"""Communicators whose streams pass through a relay, which can flip one bit on the way."""

from __future__ import annotations

import itertools
import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from allreduce.communicator.communicator import Communicator
from allreduce.rendezvous.connect import Connections
from allreduce.rendezvous.store import MemoryStore

LANES = 2


@dataclass(frozen=True, slots=True)
class Flip:
    """A bit of a stream, counted from the stream's beginning."""

    stream: tuple[int, int, int]  # from rank, to rank, lane; the last lane carries messages
    bit: int


def unix_pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        caller = socket.create_connection(server.getsockname())
        answerer, _ = server.accept()
    for sock in (caller, answerer):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return caller, answerer


class Relay:
    """Passes on all streams between ranks in a thread of its own, until both ends have closed."""

    def __init__(self, pair: Callable[[], tuple[socket.socket, socket.socket]], flip: Flip | None):
        self._pair = pair
        self._flip = flip
        self._routes: dict[int, tuple[socket.socket, socket.socket, tuple[int, int, int]]] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.flipped = False
        self.passed: dict[tuple[int, int, int], int] = {}  # bytes by stream

    def connect(self, a: int, b: int, lane: int) -> tuple[int, int]:
        """Descriptors for rank a and rank b, with the relay in between."""
        (end_a, inner_a), (end_b, inner_b) = self._pair(), self._pair()
        self._routes[inner_a.fileno()] = (inner_a, inner_b, (a, b, lane))
        self._routes[inner_b.fileno()] = (inner_b, inner_a, (b, a, lane))
        for end in (end_a, end_b):
            end.setblocking(False)
        return end_a.detach(), end_b.detach()

    def start(self) -> None:
        self.passed = {stream: 0 for _, _, stream in self._routes.values()}
        self._thread.start()

    def join(self) -> None:
        self._thread.join(30)
        assert not self._thread.is_alive(), "the relay hangs"

    def _run(self) -> None:
        poll = select.poll()
        for fd in self._routes:
            poll.register(fd, select.POLLIN)
        ended = 0
        while ended < len(self._routes):
            for fd, _ in poll.poll():
                source, target, stream = self._routes[fd]
                data = b""
                with suppress(ConnectionError):
                    data = source.recv(1 << 16)
                    target.sendall(self._damaged(stream, data))
                if not data:
                    poll.unregister(fd)
                    ended += 1
                    with suppress(OSError):
                        target.shutdown(socket.SHUT_WR)
        for source, _, _ in self._routes.values():
            source.close()

    def _damaged(self, stream: tuple[int, int, int], data: bytes) -> bytes:
        begin = self.passed[stream]
        self.passed[stream] += len(data)
        flip = self._flip
        if flip is None or flip.stream != stream:
            return data
        byte, bit = divmod(flip.bit - 8 * begin, 8)
        if not 0 <= byte < len(data):
            return data
        self.flipped = True
        return data[:byte] + bytes([data[byte] ^ 1 << bit]) + data[byte + 1 :]


def run_relayed(
    world_size: int,
    body: Callable[[Communicator], Any],
    *,
    flip: Flip | None = None,
    pair: Callable[[], tuple[socket.socket, socket.socket]] = unix_pair,
    checksum: bool = True,
    timeout: float = 30.0,
) -> tuple[list[Any], Relay]:
    """Run `body(comm)` on threads, each rank a node; results or exceptions, and the relay."""
    relay = Relay(pair, flip)
    control: list[dict[int, int]] = [{} for _ in range(world_size)]
    data: list[dict[int, list[int]]] = [{} for _ in range(world_size)]
    for a, b in itertools.combinations(range(world_size), 2):
        ends = unix_pair()
        for end in ends:
            end.setblocking(False)
        control[a][b], control[b][a] = (end.detach() for end in ends)
        lanes = [relay.connect(a, b, lane) for lane in range(LANES + 1)]
        data[a][b], data[b][a] = [fd for fd, _ in lanes], [fd for _, fd in lanes]
    relay.start()
    results: list[Any] = [None] * world_size

    def main(rank: int) -> None:
        connections = Connections(
            rank=rank,
            world_size=world_size,
            node_of_rank=list(range(world_size)),
            local_ranks=[rank],
            group_id=0x5EED,
            generation=0,
            checksum=checksum,
            control=control[rank],
            data=data[rank],
            ranks_on_host=world_size,
        )
        options = {
            **{"timeout": timeout, "local": "rs_ag", "rails": 0, "lanes": LANES},
            **{"segment_bytes": 4096, "checksum": checksum, "measure": False, "tuning": None},
        }
        comm = Communicator(connections, MemoryStore(), options)
        try:
            results[rank] = body(comm)
        except Exception as error:
            results[rank] = error
        comm.close()

    threads = [threading.Thread(target=main, args=(r,), daemon=True) for r in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * timeout)
        assert not thread.is_alive(), "a rank hangs"
    relay.join()
    return results, relay
