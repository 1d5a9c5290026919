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
from allreduce.rendezvous import listener
from allreduce.rendezvous.address import choose_address
from allreduce.rendezvous.handshake import job_secret
from allreduce.rendezvous.interfaces import interface_of

__all__ = ["Listening", "listen", "secret_proof"]

ANY_PORTS = "1024-65535"
_GET_MTU = 0x8921  # linux/sockios.h


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """Where a rank listens; `error` says why it cannot."""

    address: str = ""  # at which others call it
    port: int = 0
    own_address: str = ""  # another one only if addresses are translated on the way
    ports: str = ANY_PORTS  # from which its port comes
    why: str = ""
    interface: str = ""
    mtu: int = 0
    error: str = ""
    proof: str = ""  # that of the secret, see `secret_proof`


def listen(
    one_host: bool,
    route_to: str | None,
    environ: Mapping[str, str],
    nonce: bytes,
    local_index: int,
) -> tuple[Listening, socket.socket | None]:
    """Listen as a rank of the job would; return what to publish, and the socket."""
    proof = secret_proof(environ, nonce)
    try:
        address = choose_address(one_host, route_to, environ, local_index)
        sock = listener.listen(
            address,
            listener.ports_option(environ),
            local_index=local_index,
            congestion=None,
            loopback=one_host,
        )
    except (Error, ValueError, OSError) as error:
        return Listening(error=str(error), proof=proof), None
    interface = interface_of(address)
    called = listener.CallAddress.of(sock, environ)
    found = Listening(
        address=called.host,
        port=called.port,
        own_address=address,
        ports=environ.get("ALLREDUCE_PORTS") or ANY_PORTS,
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


def _why(one_host: bool, route_to: str | None, environ: Mapping[str, str]) -> str:
    for name in ("ALLREDUCE_HOST", "ALLREDUCE_IFACE"):
        if environ.get(name):
            return f"{name}={environ[name]}"
    if one_host:
        return "all ranks are on one host"
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if environ.get(name):
            return f"{name}={environ[name]}"
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
