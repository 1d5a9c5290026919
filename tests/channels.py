"""Every kind of channel, in connected pairs, for the tests of transports and engine."""

import itertools
import socket
from collections.abc import Callable

from allreduce import _C

testing = _C.testing


def tcp_pair():
    """Two ends of a TCP connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        caller = socket.create_connection(server.getsockname())
        answerer, _ = server.accept()
    for sock in (caller, answerer):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return testing.tcp_pair(caller.detach(), answerer.detach())


def narrow_tcp_pair():
    """The same with the smallest buffers that the kernel grants: writes are short."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        server.bind(("127.0.0.1", 0))
        server.listen()
        caller = socket.socket()
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            caller.setsockopt(socket.SOL_SOCKET, option, 1)
        caller.connect(server.getsockname())
        answerer, _ = server.accept()
        answerer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    for sock in (caller, answerer):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return testing.tcp_pair(caller.detach(), answerer.detach())


KINDS: dict[str, Callable[[], tuple]] = {
    "inproc": testing.inproc_pair,
    "inproc-late": lambda: testing.inproc_pair(delay=0.0005),
    "inproc-tiny": lambda: testing.inproc_pair(capacity=8),
    **{f"inproc-{n}": lambda n=n: testing.inproc_pair(max_transfer=n) for n in range(1, 8)},
    "shm": testing.shm_pair,
    "shm-tiny": lambda: testing.shm_pair(capacity=64),
    "socket": testing.socket_pair,
    "socket-unchecked": lambda: testing.socket_pair(checked=False),
    "tcp": tcp_pair,
    "tcp-narrow": narrow_tcp_pair,
}
STREAMS = ("socket", "socket-unchecked", "tcp", "tcp-narrow")  # over a socket, with an end


def mesh(kind: str, world_size: int) -> list[dict]:
    """Channels between all ranks: mesh[a][b] leads from a to b."""
    ranks: list[dict] = [{} for _ in range(world_size)]
    for a, b in itertools.combinations(range(world_size), 2):
        ranks[a][b], ranks[b][a] = KINDS[kind]()
    return ranks
