"""Where one rank listens for the others, as the library would choose it, and on what interface."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from allreduce.errors import Error
from allreduce.rendezvous.address import choose_address, resolve
from allreduce.rendezvous.handshake import job_secret

__all__ = ["Listening", "interface_of", "listen", "secret_proof"]

_GET_MTU = 0x8921  # linux/sockios.h
# linux/netlink.h and linux/rtnetlink.h
_NEW_ADDRESS, _GET_ADDRESS, _DUMP_REQUEST = 20, 22, 0x301
_ADDRESS, _LOCAL = 1, 2
_LINUX_HEADER, _ADDRESS_HEADER, _ATTRIBUTE = (
    struct.Struct("=IHHII"),
    struct.Struct("=BBBBI"),
    struct.Struct("=HH"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """Where a rank listens; `error` says why it cannot."""

    address: str = ""
    port: int = 0
    why: str = ""
    interface: str = ""
    mtu: int = 0
    error: str = ""
    proof: str = ""  # that of the secret, see `secret_proof`


def listen(
    one_host: bool, route_to: str | None, environ: Mapping[str, str], nonce: bytes
) -> tuple[Listening, socket.socket | None]:
    """Listen as a rank of the job would; return what to publish, and the socket."""
    proof = secret_proof(environ, nonce)
    sock = None
    try:
        address = choose_address(one_host, route_to, environ)
        family, where = resolve(address, 0)
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.bind(where)
        sock.listen(512)
    except (Error, ValueError, OSError) as error:
        if sock is not None:
            sock.close()
        return Listening(error=_bind_problem(error), proof=proof), None
    interface = interface_of(address)
    found = Listening(
        address=address,
        port=sock.getsockname()[1],
        why=_why(one_host, route_to, environ),
        interface=interface,
        mtu=_mtu(interface),
        proof=proof,
    )
    return found, sock


def secret_proof(environ: Mapping[str, str], nonce: bytes) -> str:
    """Return an HMAC of a nonce of this run, which ranks with one secret have alike; "" without a
    secret. The secret itself goes nowhere.
    """
    try:
        secret = job_secret(environ)
    except (Error, ValueError):
        return ""
    if secret is None:
        return ""
    return hmac.new(secret, b"allreduce.doctor" + nonce, hashlib.sha256).hexdigest()


def _bind_problem(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno:
        return (
            f"cannot listen: {error.strerror}; set ALLREDUCE_HOST or ALLREDUCE_IFACE to an "
            "address of this host"
        )
    return str(error)


def _why(one_host: bool, route_to: str | None, environ: Mapping[str, str]) -> str:
    for name in ("ALLREDUCE_HOST", "ALLREDUCE_IFACE"):
        if environ.get(name):
            return f"{name}={environ[name]}"
    if one_host:
        return "all ranks are on one host"
    return f"the route to {route_to}" if route_to else "the default route"


def _mtu(interface: str) -> int:
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe,
    ):
        request = struct.pack("16si20x", interface.encode(), 0)
        found: int = struct.unpack_from("i", fcntl.ioctl(probe, _GET_MTU, request), 16)[0]
        return found
    return 0


def interface_of(address: str) -> str:
    """Return the interface that has a numeric address; "" where none has."""
    text = address.partition("%")[0]
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    wanted = socket.inet_pton(family, text)
    with contextlib.suppress(OSError, struct.error):
        for index, found in _addresses(family):
            if found == wanted:
                return socket.if_indextoname(index)
    return ""


def _addresses(family: int) -> list[tuple[int, bytes]]:
    """Return (index of the interface, address) of all addresses, as the kernel lists them."""
    found: list[tuple[int, bytes]] = []
    request = _LINUX_HEADER.pack(24, _GET_ADDRESS, _DUMP_REQUEST, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.settimeout(2.0)
        kernel.send(request + _ADDRESS_HEADER.pack(family, 0, 0, 0, 0))
        while True:
            data = kernel.recv(1 << 16)
            at = 0
            while at < len(data):
                size, kind, *_ = _LINUX_HEADER.unpack_from(data, at)
                if kind != _NEW_ADDRESS:  # the end, or an error
                    return found
                found += _addresses_in(data[at + _LINUX_HEADER.size : at + size])
                at += (size + 3) & ~3


def _addresses_in(body: bytes) -> list[tuple[int, bytes]]:
    index = _ADDRESS_HEADER.unpack_from(body)[4]
    attributes: dict[int, bytes] = {}
    at = _ADDRESS_HEADER.size
    while at + _ATTRIBUTE.size <= len(body):
        size, kind = _ATTRIBUTE.unpack_from(body, at)
        attributes[kind] = body[at + _ATTRIBUTE.size : at + size]
        at += (size + 3) & ~3
    return [(index, attributes[kind]) for kind in (_LOCAL, _ADDRESS) if kind in attributes]
