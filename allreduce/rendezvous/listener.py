"""The TCP socket where ranks of other nodes call a rank, and the address that it publishes."""

from __future__ import annotations

import contextlib
import errno
import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from allreduce.errors import PeerError, UsageError
from allreduce.rendezvous.address import Address, advertised_host, resolve, set_congestion_control
from allreduce.rendezvous.interfaces import interface_of

_ANY_PORT = range(1)
_PORT_MAX = 65535


def ports_option(environ: Mapping[str, str]) -> range:
    """Return the ports of `ALLREDUCE_PORTS`, "29600" or "29600-29699"; without it, port 0.

    Raises:
        ValueError: the value is no port and no range of ports.
    """
    text = environ.get("ALLREDUCE_PORTS", "").strip()
    if not text:
        return _ANY_PORT
    first, dash, last = text.partition("-")
    with contextlib.suppress(ValueError):
        low, high = int(first), int(last if dash else first)
        if 1 <= low <= high <= _PORT_MAX:
            return range(low, high + 1)
    raise UsageError(
        f"ALLREDUCE_PORTS={text}: must be a port, or two with a dash between: 29600-29699"
    )


def listen(
    host: str, ports: range, *, local_index: int, congestion: str | None, loopback: bool
) -> socket.socket:
    """Return a socket that listens on one of the ports.

    Args:
        host: a numeric address of this host.
        local_index: the number of this rank on its node. Ranks of a node begin at different ports.

    Raises:
        ValueError: `host` is no address of this host, or all ports are taken.
    """
    begin = local_index % len(ports)
    for port in [*ports[begin:], *ports[:begin]]:
        if listener := _try_port(resolve(host, port), congestion, loopback):
            return listener
    if ports == _ANY_PORT:
        raise UsageError(f"no port is free on {host}: all ephemeral ports are in use")
    raise UsageError(
        f"ALLREDUCE_PORTS: all {len(ports)} ports from {ports[0]} to {ports[-1]} on {host} are in "
        "use; each rank of a host needs one for each group that it makes at the same time"
    )


def _try_port(address: Address, congestion: str | None, loopback: bool) -> socket.socket | None:
    """Return a socket that listens there, or None where the port is taken."""
    family, where = address
    with contextlib.ExitStack() as undo:
        listener = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
        # Accepted sockets inherit it.
        set_congestion_control(listener, congestion, loopback)
        # A port of ALLREDUCE_PORTS may have connections that wait for their end (TIME_WAIT).
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(where)
            listener.listen(4096)  # where two have bound, the kernel refuses the second only here
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return None
            remedy = "set ALLREDUCE_HOST or ALLREDUCE_IFACE to an address of this host"
            if error.errno == errno.EACCES:
                remedy = "set ALLREDUCE_PORTS to ports from 1024 on"
            raise UsageError(f"cannot listen on {where[0]}: {error.strerror}; {remedy}") from error
        listener.setblocking(False)
        undo.pop_all()
    return listener


@dataclass(frozen=True, slots=True, kw_only=True)
class CallAddress:
    """Where ranks of other nodes call a rank."""

    host: str
    port: int
    interface: str = ""
    behind: str = ""  # where it listens, if `host` only leads there: ALLREDUCE_ADVERTISE

    @classmethod
    def of(cls, listener: socket.socket, environ: Mapping[str, str]) -> CallAddress:
        """Return the address of a socket that listens.

        `ALLREDUCE_ADVERTISE` takes the place of its host where addresses are translated on the way.
        The port stays.
        """
        host, port = listener.getsockname()[:2]
        own = cls(host=host, port=port, interface=interface_of(host))
        advertised = advertised_host(environ)
        return cls(host=advertised, port=port, behind=str(own)) if advertised else own

    def __str__(self) -> str:
        """Return it in words: "eth0 10.0.0.7 port 4711"."""
        words = f"{self.interface} {self.host} port {self.port}".strip()
        return f"{words}, which leads to {self.behind}" if self.behind else words

    def pack(self) -> bytes:
        """Return it as a rank publishes it."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def unpack(cls, rank: int, value: bytes) -> CallAddress:
        """Return what a rank published; raises the error of one that cannot listen."""
        entry = json.loads(value)
        if "error" in entry:
            kind = UsageError if entry.get("usage") else PeerError
            raise kind(f"rank {rank}: {entry['error']}")
        return cls(**entry)

    def resolve(self, rank: int) -> Address:
        """Return the socket address at which to call `rank`; ValueError if the host is unknown."""
        try:
            return resolve(self.host, self.port)
        except (OSError, UnicodeError) as error:
            raise UsageError(
                f"ALLREDUCE_ADVERTISE={self.host} of rank {rank} cannot be resolved here: {error}"
            ) from error


def refusal(error: Exception) -> bytes:
    """Return what a rank publishes that cannot listen."""
    return json.dumps({"error": str(error), "usage": isinstance(error, ValueError)}).encode()


def check_different(addresses: Sequence[CallAddress], hosts: Sequence[object]) -> None:
    """Raise UsageError where an address would lead to another host than the one that published it.

    Args:
        addresses: of all ranks.
        hosts: what tells the network of each rank's host from others.
    """
    owners: dict[tuple[str, int], int] = {}
    for rank, address in enumerate(addresses):
        # Hosts behind one translator share its address, and differ in the port.
        key = (address.host, address.port if address.behind else 0)
        first = owners.setdefault(key, rank)
        if address.behind and first != rank:
            raise UsageError(
                f"ranks {first} and {rank} are to be called at {address.host} port {address.port}; "
                "give each host behind ALLREDUCE_ADVERTISE ports of its own (ALLREDUCE_PORTS)"
            )
        if hosts[first] != hosts[rank]:
            raise UsageError(
                f"ranks {first} and {rank} run on different hosts, and both are to be called at "
                f"{address}; set ALLREDUCE_IFACE or ALLREDUCE_HOST to a network that joins them"
            )
