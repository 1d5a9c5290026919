"""A small key-value store over TCP, served by a thread of rank 0 for as long as the mesh is being
built.

Connections prove themselves by the mesh's own handshake (with the job's secret where there is one),
so garbage never reaches the parser. A frame is a fixed header and at most 4 MiB; nothing is
unpickled.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from allreduce.errors import PeerError, SystemCallError, Timeout, UsageError
from allreduce.rendezvous.acceptor import Acceptor, EventLoop, handshake_until
from allreduce.rendezvous.address import Address, bind_address, resolve_store
from allreduce.rendezvous.handshake import (
    NO_SECRET,
    Kind,
    Link,
    Rejected,
    Session,
    answer,
    call,
    job_secret,
)
from allreduce.rendezvous.store import backoff

_REQUEST = struct.Struct("<BHI")  # operation, bytes of key, bytes of value
_REPLY = struct.Struct("<BI")  # found, bytes of value
_SET, _GET, _CHECK, _DELETE, _GET_MANY, _ADD = range(1, 7)
_VALUE_BYTES_MAX = 4 << 20
_REPLY_BYTES_MAX = 1 << 20  # of several values, but for the last of them
_STORE_BYTES_MAX = 256 << 20
_LINK = Link(Kind.STORE, 0, 0, 0)

log = logging.getLogger("allreduce")


class TcpStore:
    """A store at `host`:`port`; the process with `is_server` (rank 0) serves it, at that address
    alone.

    Safe to use from several threads of a process. `timeout` (seconds) bounds the first connection
    and each call. `job` keeps two jobs apart that were given the same port. With `clients`, the
    server stops listening when that many are connected. Port 0 lets the server choose: see `.port`.

    Raises:
        OSError: the server's port is taken or `host` is not an address of this machine.
        TimeoutError: nothing answered at `host`:`port` in time.
    """

    def __init__(
        self,
        host: str,
        port: int,
        is_server: bool,
        timeout: float,
        *,
        job: str = "",
        clients: int | None = None,
        secret: bytes | None = None,
    ) -> None:
        secret = job_secret() if secret is None else secret
        group_id = int.from_bytes(hashlib.sha256(job.encode()).digest()[:4], "little")
        session = Session.derive(secret or NO_SECRET, group_id, 0)
        self.host = host
        self.port = port
        self._timeout = timeout
        self._lock = threading.Lock()
        self._server: _Server | None = None
        address = None
        if is_server:
            listener = _listen(host, port)
            self.port = listener.getsockname()[1]
            address = (listener.family, listener.getsockname())
            self._server = _Server(listener, session, clients)
        try:
            self._sock: socket.socket | None = self._connect(address, session)
        except BaseException:
            self.close()
            raise

    def set(self, key: str, value: bytes, /) -> None:
        """Store `value` (at most 4 MiB) under `key`."""
        if len(value) > _VALUE_BYTES_MAX:
            raise UsageError(
                f"store: a value of {len(value)} bytes; at most {_VALUE_BYTES_MAX} are allowed"
            )
        if not self._ask(_SET, key, bytes(value))[0]:
            raise PeerError(f"the store at {self.host}:{self.port} is full")

    def get(self, key: str, /) -> bytes:
        """Return the value of `key`; TimeoutError if it does not come."""
        for _ in backoff(time.monotonic() + self._timeout):
            found, value = self._ask(_GET, key, b"")
            if found:
                return value
        raise Timeout(
            f"store: key {key!r} did not come to {self.host}:{self.port} within {self._timeout:g} s"
        )

    def check(self, keys: list[str], /) -> bool:
        """Tell whether all `keys` are there."""
        return self._ask(_CHECK, "", "\0".join(keys).encode())[0]

    def get_many(self, keys: Sequence[str], /) -> list[bytes | None]:
        """Return the values of `keys` that are there, None for the others.

        Values of a megabyte in all are fetched by one request, more than that by several.
        """
        values: list[bytes | None] = []
        while len(values) < len(keys):
            reply = self._ask(_GET_MANY, "", "\0".join(keys[len(values) :]).encode())[1]
            at = 0
            while at < len(reply):
                found, length = _REPLY.unpack_from(reply, at)
                at += _REPLY.size
                values.append(reply[at : at + length] if found else None)
                at += length
        return values

    def add(self, key: str, amount: int, /) -> int:
        """Add to the number under `key`, 0 at first, and return the sum."""
        found, total = self._ask(_ADD, key, str(amount).encode())
        if not found:
            raise PeerError(f"the store at {self.host}:{self.port} is full")
        return int(total)

    def delete_key(self, key: str, /) -> bool:
        """Remove `key`; tell whether it was there."""
        return self._ask(_DELETE, key, b"")[0]

    def close(self) -> None:
        """Close the connection and, on the server, the store itself. May be called twice."""
        sock, self._sock = getattr(self, "_sock", None), None
        if sock is not None:
            sock.close()
        if self._server is not None:
            self._server.close()
            self._server = None

    def _connect(self, known: Address | None, session: Session) -> socket.socket:
        deadline = time.monotonic() + self._timeout
        pause, reason = 0.01, "no answer"
        while True:
            sock = None
            try:
                family, address = known or resolve_store(self.host, self.port)
                sock = socket.socket(family, socket.SOCK_STREAM)
                sock.settimeout(max(0.01, min(5.0, deadline - time.monotonic())))
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setblocking(False)
                handshake_until(sock, call(session, _LINK), min(deadline, time.monotonic() + 5.0))
                return sock
            except (OSError, Rejected) as error:
                reason = str(error) or type(error).__name__
            except BaseException:
                if sock is not None:
                    sock.close()
                raise
            if sock is not None:
                sock.close()
            if time.monotonic() >= deadline:
                raise Timeout(
                    f"rank 0 never answered at {self.host}:{self.port} within {self._timeout:g} s "
                    f"(last: {reason}). "
                    "Check that rank 0 runs, that MASTER_ADDR and MASTER_PORT are the same "
                    "everywhere, that no firewall "
                    "is between, and that all ranks have the same job and secret"
                )
            time.sleep(min(max(0.0, deadline - time.monotonic()), pause * random.uniform(0.5, 1.5)))
            pause = min(0.5, pause * 1.6)

    def _ask(self, operation: int, key: str, value: bytes) -> tuple[bool, bytes]:
        name = key.encode()
        with self._lock:
            if self._sock is None:
                raise PeerError(f"the store at {self.host}:{self.port} is closed")
            try:
                self._sock.settimeout(self._timeout)
                self._sock.sendall(_REQUEST.pack(operation, len(name), len(value)) + name + value)
                found, length = _REPLY.unpack(_receive(self._sock, _REPLY.size))
                if length > _VALUE_BYTES_MAX + _REPLY.size:
                    raise ConnectionError(f"a reply of {length} bytes")
                return bool(found), _receive(self._sock, length)
            except BaseException as error:
                self._sock.close()  # the stream may be in the middle of a reply
                self._sock = None
                if isinstance(error, OSError):
                    raise PeerError(
                        f"lost the store at {self.host}:{self.port} ({error}); rank 0, which "
                        "serves it, has probably died"
                    ) from error
                raise


def _receive(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            raise ConnectionResetError(errno.ECONNRESET, "connection closed")
        data += part
    return bytes(data)


def _listen(host: str, port: int) -> socket.socket:
    family, address = bind_address(host, port)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(4096)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        where = f"{address[0]}:{port}"
        if error.errno == errno.EADDRINUSE:
            hint = (
                f"port {port} on {address[0]} is in use; set MASTER_PORT to a free one everywhere"
            )
        elif error.errno == errno.EADDRNOTAVAIL:
            hint = f"{host} ({address[0]}) is not this machine; set MASTER_ADDR to rank 0's host"
        else:
            hint = f"cannot listen on {where}: {error.strerror}; set MASTER_ADDR and MASTER_PORT"
        raise SystemCallError(error.errno, f"rank 0 cannot serve the store: {hint}") from error
    return listener


class _Client:
    """The server's end of one proved connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = bytearray()
        self.to_send = bytearray()


class _Server:
    """The thread that serves. All but `close` runs in it; only the wake-up descriptor is shared."""

    def __init__(self, listener: socket.socket, session: Session, clients: int | None) -> None:
        self._awaited = clients
        self._values: dict[str, bytes] = {}
        self._bytes = 0
        self._clients: set[_Client] = set()
        self._stopping = False
        expected = {_LINK}
        with ExitStack() as undo:
            undo.callback(listener.close)
            self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            undo.callback(os.close, self._stop)
            self._loop = EventLoop()
            undo.callback(self._loop.close)
            self._loop.watch(self._stop, select.EPOLLIN, self._on_stop)
            self._acceptor = Acceptor(
                self._loop, listener, lambda: answer(session, expected), self._welcome
            )
            self._thread = threading.Thread(target=self._serve, name="allreduce-store", daemon=True)
            self._start()
            undo.pop_all()

    def close(self) -> None:
        """Stop the thread and close all its descriptors."""
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        os.close(self._stop)

    def _start(self) -> None:
        try:
            self._thread.start()
        except RuntimeError as error:
            raise SystemCallError(
                errno.EAGAIN,
                "rank 0 cannot start the thread that serves the store (raise ulimit -u, or the "
                "container's limit of pids)",
            ) from error

    def _on_stop(self, _events: int) -> None:
        self._stopping = True

    def _serve(self) -> None:
        try:
            while not self._stopping:
                expiry = self._acceptor.next_expiry()
                self._loop.turn(None if expiry == float("inf") else expiry - time.monotonic())
                self._acceptor.expire(time.monotonic())
        except Exception:  # nothing may leave a thread; the ranks notice closed connections
            log.exception("the store's thread stopped")
        finally:
            self._acceptor.close()
            for client in self._clients:
                client.sock.close()
            self._loop.close()

    def _welcome(self, _link: Link, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = _Client(sock)
        self._clients.add(client)
        if len(self._clients) == self._awaited:
            self._acceptor.close()
        self._loop.watch(sock.fileno(), select.EPOLLIN, self._handler(client))

    def _handler(self, client: _Client) -> Callable[[int], None]:
        return lambda _events: self._advance(client)

    def _advance(self, client: _Client) -> None:
        try:
            if client.to_send:
                del client.to_send[: client.sock.send(client.to_send)]
            else:
                data = client.sock.recv(1 << 16)
                if not data:
                    raise ConnectionResetError
                client.received += data
                while self._take_frame(client):
                    pass
                if client.to_send:
                    del client.to_send[: client.sock.send(client.to_send)]
        except BlockingIOError:
            pass
        except (OSError, ValueError):  # ValueError: a frame that makes no sense
            self._loop.forget(client.sock.fileno())
            self._clients.discard(client)
            client.sock.close()
            return
        events = select.EPOLLOUT if client.to_send else select.EPOLLIN
        self._loop.watch(client.sock.fileno(), events, self._handler(client))

    def _take_frame(self, client: _Client) -> bool:
        if len(client.received) < _REQUEST.size:
            return False
        operation, key_bytes, value_bytes = _REQUEST.unpack_from(client.received)
        if value_bytes > _VALUE_BYTES_MAX or not _SET <= operation <= _ADD:
            raise ValueError("bad frame")
        end = _REQUEST.size + key_bytes + value_bytes
        if len(client.received) < end:
            return False
        key = client.received[_REQUEST.size : _REQUEST.size + key_bytes].decode()
        value = bytes(client.received[_REQUEST.size + key_bytes : end])
        del client.received[:end]
        found, answer_value = self._do(operation, key, value)
        client.to_send += _REPLY.pack(found, len(answer_value)) + answer_value
        return True

    def _do(self, operation: int, key: str, value: bytes) -> tuple[bool, bytes]:
        if operation == _CHECK:
            return all(name in self._values for name in value.decode().split("\0")), b""
        if operation == _GET_MANY:
            return True, self._get_many(value.decode().split("\0"))
        old = self._values.get(key)
        if operation == _ADD:
            value = str(int(old or b"0") + int(value)).encode()
            return self._do(_SET, key, value)[0], value
        if operation == _GET:
            return old is not None, old or b""
        size = len(key) + len(old) if old is not None else 0
        if operation == _SET:
            if self._bytes - size + len(key) + len(value) > _STORE_BYTES_MAX:
                return False, b""
            self._values[key] = value
            self._bytes += len(key) + len(value) - size
            return True, b""
        self._values.pop(key, None)
        self._bytes -= size
        return old is not None, b""

    def _get_many(self, keys: list[str]) -> bytes:
        """Return the first of the values, each behind a header as in a reply."""
        reply = bytearray()
        for key in keys:
            value = self._values.get(key)
            if reply and len(reply) + len(value or b"") > _REPLY_BYTES_MAX:
                break
            reply += _REPLY.pack(value is not None, len(value or b"")) + (value or b"")
        return bytes(reply)
