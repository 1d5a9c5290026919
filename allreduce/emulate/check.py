"""What hosts see of an emulated network, beside what was asked for: `--check`.

Every host runs this; host 0 measures and prints. A round trip is a datagram's to host 1 and back.
Throughput is what host 0 receives over TCP, from one host and from all others at once. The first
part of a stream is not counted: there TCP still looks for the rate.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack

from allreduce.emulate.network import Network, delay_text, rate_text

__all__ = ["main"]

_PORT = 29501
_ROUND_TRIPS = 40
_DATAGRAM, _DATAGRAM_HEADERS = 56, 28
_SEGMENT_HEADERS = 52  # IP, and TCP with time stamps
_CHUNK = 1 << 20
_SECONDS_SKIPPED, _SECONDS_COUNTED = 1.5, 3.0  # of a stream, at least
_ROUND_TRIPS_SKIPPED, _ROUND_TRIPS_COUNTED = 30, 30
_DEADLINE = 120.0
_TOLERANCE = 0.05
_PING, _STREAM, _END = b"p", b"s", b"e"


def main(network: Network) -> int:
    """Measure, and print a table on host 0; 1 if anything is off by more than 5 %."""
    host = int(os.environ["NODE_RANK"])
    if host != 0:
        with _connect(network.address(0)) as line:
            line.sendall(host.to_bytes(2, "big"))
            _serve(line, network)
        return 0
    address = (network.address(0), _PORT)
    with (
        socket.create_server(address, backlog=network.hosts) as listener,
        ExitStack() as stack,
    ):
        listener.settimeout(_DEADLINE)
        lines = {}
        for _ in range(network.hosts - 1):
            line = stack.enter_context(listener.accept()[0])
            line.settimeout(_DEADLINE)
            lines[int.from_bytes(_receive(line, 2), "big")] = line
        others = [lines[number] for number in sorted(lines)]
        rows = _Rows(network)
        rows.round_trip(_round_trip(others[0], network))
        rows.throughput("one stream", _throughput(listener, others[:1], network), 1)
        if len(others) > 1:
            found = _throughput(listener, others, network)
            rows.throughput(f"{len(others)} streams into one host", found, len(others))
        for line in others:
            line.sendall(_END)
    return int(rows.worst > _TOLERANCE)


class _Rows:
    """The table, line by line."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.worst = 0.0
        print(f"{'':32}{'asked for':>14}{'measured':>14}{'error':>9}", flush=True)

    def round_trip(self, seconds: float) -> None:
        """Print the time of a datagram to host 1 and back."""
        network = self._network
        each = (_DATAGRAM + _DATAGRAM_HEADERS) * sum(1 / network.slowed_rate(h) for h in (0, 1))
        mean_jitter = network.slowed_jitter() / 2
        asked = 2 * (network.slowed_delay() + mean_jitter + each)
        self._print("round trip", delay_text(asked), delay_text(seconds), seconds / asked - 1)

    def throughput(self, what: str, rate: float, senders: int) -> None:
        """Print the bytes per second of streams."""
        network = self._network
        sent = sum(network.slowed_rate(host) for host in range(1, senders + 1))
        payload = (network.mtu - _SEGMENT_HEADERS) / network.mtu
        asked = min(network.slowed_rate(0), sent) * payload
        if network.loss:  # what TCP makes of it is not asked for
            print(f"{what:32}{'':14}{rate_text(8 * rate):>14}")
            return
        self._print(what, rate_text(8 * asked), rate_text(8 * rate), rate / asked - 1)

    def _print(self, what: str, asked: str, measured: str, error: float) -> None:
        self.worst = max(self.worst, abs(error))
        print(f"{what:32}{asked:>14}{measured:>14}{100 * error:>+8.1f}%", flush=True)


def _round_trip(line: socket.socket, network: Network) -> float:
    """Return the median of the seconds of a datagram to host 1 and back."""
    line.sendall(_PING)
    _receive(line, 1)
    seconds = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
        here.settimeout(1 + 8 * (network.slowed_delay() + network.slowed_jitter()))
        for _ in range(_ROUND_TRIPS):
            begin = time.perf_counter()
            here.sendto(bytes(_DATAGRAM), (network.address(1), _PORT))
            with contextlib.suppress(TimeoutError):  # it may be one that is lost
                here.recv(_DATAGRAM)
                seconds.append(time.perf_counter() - begin)
    line.sendall(_END)
    return statistics.median(seconds)


def _throughput(
    listener: socket.socket, others: Sequence[socket.socket], network: Network
) -> float:
    """Return the bytes per second that come from hosts at once."""
    for line in others:
        line.sendall(_STREAM)
    trip = 2 * network.slowed_delay()
    begin = time.perf_counter() + max(_SECONDS_SKIPPED, _ROUND_TRIPS_SKIPPED * trip)
    end = begin + max(_SECONDS_COUNTED, _ROUND_TRIPS_COUNTED * trip)
    room = bytearray(_CHUNK)
    counted, first, last = 0, 0.0, 0.0
    with selectors.DefaultSelector() as ready, ExitStack() as stack:
        for _ in others:
            stream = stack.enter_context(listener.accept()[0])
            stream.setblocking(False)
            ready.register(stream, selectors.EVENT_READ)
        while (now := time.perf_counter()) < end:
            for key, _ in ready.select(timeout=end - now):
                with contextlib.suppress(BlockingIOError):
                    received = key.fileobj.recv_into(room)  # type: ignore[union-attr]
                    last = time.perf_counter()
                    if last < begin:
                        first = last
                    else:
                        counted += received
    return counted / (last - first)


def _serve(line: socket.socket, network: Network) -> None:
    """Do what host 0 says."""
    while (what := line.recv(1)) not in (_END, b""):
        if what == _PING:
            _answer(line, network)
        else:
            with _connect(network.address(0)) as stream, contextlib.suppress(OSError):
                while True:  # until host 0 has seen enough
                    stream.sendall(bytes(_CHUNK))


def _answer(line: socket.socket, network: Network) -> None:
    host = int(os.environ["NODE_RANK"])
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here,
        selectors.DefaultSelector() as ready,
    ):
        here.bind((network.address(host), _PORT))
        ready.register(here, selectors.EVENT_READ)
        ready.register(line, selectors.EVENT_READ)
        line.sendall(_PING)
        while True:
            for key, _ in ready.select():
                if key.fileobj is line:
                    line.recv(1)
                    return
                here.sendto(*here.recvfrom(_DATAGRAM))


def _connect(address: str) -> socket.socket:
    deadline = time.monotonic() + _DEADLINE
    while time.monotonic() < deadline:
        with contextlib.suppress(ConnectionRefusedError):  # host 0 does not listen yet
            return socket.create_connection((address, _PORT), timeout=_DEADLINE)
        time.sleep(0.05)
    raise TimeoutError(f"host 0 does not listen on {address}")


def _receive(line: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        more = line.recv(count - len(found))
        if not more:
            raise ConnectionError("a host has ended")
        found += more
    return found
