"""Between hosts: whether one reaches the other, whether large packets pass, delay, clock and rate.

Every rank serves probes on the address and port that it published. A caller says which job it
belongs to, and then asks for one thing after the other:

    PING        the server's clock, in nanoseconds
    TAKE n      the server receives n bytes, then says how many bytes a second came
    GIVE n      the server sends n bytes, and the caller counts
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from allreduce.rendezvous.address import dead_after_option, resolve, route_address, tune

__all__ = ["Peer", "Rate", "Reach", "Server", "measure_rate", "reach_all", "rounds"]

TOKEN_BYTES = 16
_MAGIC = b"HIERdoc1"
_HELLO = struct.Struct(f"<8s{TOKEN_BYTES}sI")  # magic, token of the job, caller
_WELCOME = struct.Struct("<8sI")  # magic, rank of the server
_COMMAND = struct.Struct("<BI")  # what, bytes
_CLOCK, _RATE = struct.Struct("<q"), struct.Struct("<d")
_PING, _TAKE, _GIVE = range(3)
_PINGS = 12
_LARGE_BYTES = 64 << 10  # several packets of any network, and less than any buffer
_STREAM_BYTES_MAX = 256 << 20
_STREAM_SECONDS = 0.25
_CHUNK = 128 << 10
_CONNECT_SECONDS = 3.0
_ANSWER_SECONDS = 3.0
_SERVE_SECONDS = 20.0
_AT_ONCE = 8  # calls of one host that are under way


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Where a rank can be probed."""

    rank: int
    address: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What a caller found. Only the first of the errors that happened is set."""

    caller: int
    callee: int
    error: str = ""  # no connection
    large_error: str = ""  # small packets pass, large ones do not
    round_trip: float = 0.0  # seconds, the least of some
    clock_offset: float = 0.0  # seconds by which the callee's clock is ahead
    leaves_by: str = ""  # this host's address on the route to the callee


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What one TCP stream between two ranks carried, in bytes a second; 0 if it broke."""

    source: int
    target: int
    rate: float
    round_trip: float = 0.0


class Server:
    """Answers probes in threads until it is closed."""

    def __init__(self, rank: int, listener: socket.socket, token: bytes) -> None:
        self._rank, self._listener, self._token = rank, listener, token
        listener.settimeout(None)
        threading.Thread(target=self._accept, name="allreduce-doctor", daemon=True).start()

    def close(self) -> None:
        """Listen no longer."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with contextlib.suppress(RuntimeError):  # no thread: the caller sees the end
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), sock:
            sock.settimeout(_SERVE_SECONDS)
            _tune(sock)
            magic, token, _caller = _HELLO.unpack(_receive(sock, _HELLO.size))
            if magic != _MAGIC or token != self._token:
                return
            sock.sendall(_WELCOME.pack(_MAGIC, self._rank))
            while True:
                what, count = _COMMAND.unpack(_receive(sock, _COMMAND.size))
                if count > _LARGE_BYTES:
                    raise ValueError("more than any rank asks for")
                if what == _PING:
                    sock.sendall(_CLOCK.pack(time.time_ns()))
                elif what == _TAKE:
                    sock.sendall(_RATE.pack(_take(sock, count)))
                else:
                    _give(sock, count)


def _call(caller: int, peer: Peer, token: bytes) -> socket.socket:
    """Return a connection that the right rank has accepted; OSError says why there is none."""
    family, address = resolve(peer.address, peer.port)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(_CONNECT_SECONDS)
        sock.connect(address)
        sock.settimeout(_ANSWER_SECONDS)
        _tune(sock)
        sock.sendall(_HELLO.pack(_MAGIC, token, caller))
        magic, rank = _WELCOME.unpack(_receive(sock, _WELCOME.size))
        if magic != _MAGIC or rank != peer.rank:
            raise ConnectionError(f"rank {rank} answers there")
    except BaseException:
        sock.close()
        raise
    return sock


def _tune(sock: socket.socket) -> None:
    """Set what the library sets on its own sockets."""
    tune(sock, dead_after_option(None, {}), sock.getsockname()[0].startswith("127."))


def reach_all(caller: int, peers: Sequence[Peer], token: bytes, seconds: float) -> list[Reach]:
    """Call all peers, some at a time; those that no time is left for are not in the list."""
    deadline = time.monotonic() + seconds

    def look(peer: Peer) -> Reach | None:
        return _reach(caller, peer, token) if time.monotonic() < deadline else None

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        found = list(threads.map(look, peers))
    return [reach for reach in found if reach is not None]


def _reach(caller: int, peer: Peer, token: bytes) -> Reach:
    leaves_by = route_address(peer.address) or ""
    try:
        with _call(caller, peer, token) as sock:
            round_trip, offset = _ping(sock)
            large_error = ""
            try:
                sock.sendall(_COMMAND.pack(_TAKE, _LARGE_BYTES) + bytes(_LARGE_BYTES))
                _receive(sock, _RATE.size)
            except OSError as error:
                large_error = _reason(error)
    except OSError as error:
        return Reach(caller=caller, callee=peer.rank, error=_reason(error), leaves_by=leaves_by)
    return Reach(
        caller=caller,
        callee=peer.rank,
        large_error=large_error,
        round_trip=round_trip,
        clock_offset=offset,
        leaves_by=leaves_by,
    )


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer"
    text = error.strerror or str(error) or type(error).__name__
    return text[:1].lower() + text[1:] if error.errno != errno.EIO else text


def _ping(sock: socket.socket) -> tuple[float, float]:
    """Return the least round trip and the clock's offset, both in seconds.

    The offset belongs to the fastest answer: it is wrong by half of that round trip at most.
    """
    best, offset = float("inf"), 0.0
    for _ in range(_PINGS):
        begin, wall = time.perf_counter(), time.time_ns()
        sock.sendall(_COMMAND.pack(_PING, 0))
        (theirs,) = _CLOCK.unpack(_receive(sock, _CLOCK.size))
        took = time.perf_counter() - begin
        if took < best:
            best, offset = took, (theirs - wall) / 1e9 - took / 2
    return best, offset


def measure_rate(caller: int, peer: Peer, token: bytes, seconds: float) -> list[Rate]:
    """Return what a stream carried in each direction, one after the other, within some time."""
    deadline = time.monotonic() + seconds
    outward = homeward = round_trip = 0.0
    with contextlib.suppress(OSError, ValueError), _call(caller, peer, token) as sock:
        round_trip, _ = _ping(sock)
        sock.sendall(_COMMAND.pack(_TAKE, 0))
        _give(sock, 0)
        sock.settimeout(seconds / 2)
        (outward,) = _RATE.unpack(_receive(sock, _RATE.size))
        sock.sendall(_COMMAND.pack(_GIVE, 0))
        homeward = _take(sock, 0, deadline)
    return [
        Rate(source=caller, target=peer.rank, rate=outward, round_trip=round_trip),
        Rate(source=peer.rank, target=caller, rate=homeward, round_trip=round_trip),
    ]


def _give(sock: socket.socket, count: int) -> None:
    """Send `count` bytes; 0: for some time, in chunks that say whether another one follows."""
    if count:
        sock.sendall(bytes(count))
        return
    chunk, last = b"\1" * _CHUNK, b"\0" * _CHUNK
    end = time.monotonic() + _STREAM_SECONDS
    sent = 0
    while time.monotonic() < end and sent < _STREAM_BYTES_MAX:
        sock.sendall(chunk)
        sent += _CHUNK
    sock.sendall(last)


def _take(sock: socket.socket, count: int, deadline: float = float("inf")) -> float:
    """Receive what `_give` sends; return the bytes a second, without the first quarter."""
    if count:
        _receive(sock, count)
        return 0.0
    room = bytearray(_CHUNK)
    times: list[float] = []
    while True:
        _receive_into(sock, room)
        times.append(time.perf_counter())
        if time.monotonic() > deadline:
            raise TimeoutError("the stream did not end")
        if room[0] == 0:
            break
    first = len(times) // 4
    seconds = times[-1] - times[first]
    return (len(times) - 1 - first) * _CHUNK / seconds if seconds > 0 else 0.0


def _receive(sock: socket.socket, count: int) -> bytes:
    room = bytearray(count)
    _receive_into(sock, room)
    return bytes(room)


def _receive_into(sock: socket.socket, room: bytearray) -> None:
    view = memoryview(room)
    while view:
        received = sock.recv_into(view)
        if not received:
            raise ConnectionResetError(errno.ECONNRESET, "closed by the other side")
        view = view[received:]


def rounds(members: Sequence[int]) -> list[list[tuple[int, int]]]:
    """Return rounds of pairs in which nobody is in two pairs at once, and no pair comes twice.

    The circle method. Up to 4 members every pair has its turn; of more, each has log2 n partners.
    """
    ring: list[int | None] = list(members)
    if len(ring) % 2:
        ring.append(None)
    size = len(ring)
    wanted = size - 1 if size <= 4 else (size - 1).bit_length()
    found = []
    for number in range(wanted if size > 1 else 0):
        turned = ring[:1] + ring[1 + number :] + ring[1 : 1 + number]
        half = size // 2
        met = zip(turned[:half], reversed(turned[half:]), strict=True)
        found.append([(min(a, b), max(a, b)) for a, b in met if a is not None and b is not None])
    return found
