"""The network interfaces of this host, and the words by which a user chooses among them."""

from __future__ import annotations

import array
import contextlib
import fcntl
import fnmatch
import ipaddress
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from allreduce.errors import UsageError

_SIOCGIFCONF, _SIOCGIFFLAGS = 0x8912, 0x8913  # of linux/sockios.h
_IFCONF = struct.Struct("iP")  # the length of a table, and where it lies
_IFREQ = struct.Struct("16s4x4s16x")  # one row of it: a name and an IPv4 address
_IFFLAGS = struct.Struct("16sH22x")
_IFF_UP = 1
_ADDRESSES_MAX = 4096
_GLOBAL_SCOPE = "00"
_NOT_USABLE = 0x08 | 0x40  # of linux/if_addr.h: in use elsewhere, or not known yet

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """A numeric address of this host, and the interface that has it."""

    interface: str
    address: str
    label: str = ""  # as "eth0:1", of a further address of the interface

    def __str__(self) -> str:
        """Return the two in words: "eth0 10.0.0.7"."""
        return f"{self.interface} {self.address}"

    @property
    def is_loopback(self) -> bool:
        """Whether the address stays inside this host."""
        return ipaddress.ip_address(self.address).is_loopback


def host_addresses() -> list[InterfaceAddress]:
    """Return the addresses of all interfaces that are up: IPv4, then IPv6 but for link-local."""
    return [each for each in [*_ipv4_addresses(), *_ipv6_addresses()] if _is_up(each.interface)]


def interface_of(address: str) -> str:
    """Return the name of the interface that has this address; "" where none of this host has it."""
    return next((each.interface for each in host_addresses() if each.address == address), "")


def _ipv4_addresses() -> list[InterfaceAddress]:
    table = array.array("B", bytes(_ADDRESSES_MAX * _IFREQ.size))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        asked = _IFCONF.pack(len(table), table.buffer_info()[0])
        used, _where = _IFCONF.unpack(fcntl.ioctl(probe, _SIOCGIFCONF, asked))
    rows = _IFREQ.iter_unpack(table[:used].tobytes())
    labels = [(_text(name), socket.inet_ntoa(inet)) for name, inet in rows]
    return [InterfaceAddress(label.partition(":")[0], inet, label) for label, inet in labels]


def _ipv6_addresses() -> list[InterfaceAddress]:
    found = []
    with contextlib.suppress(OSError):  # a kernel without IPv6
        for line in Path("/proc/net/if_inet6").read_text(errors="replace").splitlines():
            digits, _index, _prefix, scope, flags, interface = line.split()
            address = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))
            usable = scope == _GLOBAL_SCOPE and not int(flags, 16) & _NOT_USABLE
            if usable or address == "::1":
                found.append(InterfaceAddress(interface, address))
    return found


def _is_up(interface: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            reply = fcntl.ioctl(probe, _SIOCGIFFLAGS, _IFFLAGS.pack(interface.encode(), 0))
        except OSError:  # it has gone
            return False
    return bool(_IFFLAGS.unpack(reply)[1] & _IFF_UP)


def _text(name: bytes) -> str:
    return name.split(b"\0")[0].decode(errors="replace")


class InterfaceOption:
    """What a user says of interfaces: a list such as `eth0,10.2.0.0/16,!docker*`.

    An entry is the name of an interface, a pattern of names with `*` and `?`, or a network; with
    `!` it is one to leave out. Loopback matches only where it is named or its network is given.
    """

    def __init__(self, text: str, source: str) -> None:
        """Read the list.

        Args:
            text: the list; without an entry that includes, all but loopback are included.
            source: what the user has written where, for messages.

        Raises:
            UsageError: the list is empty, or an entry is no network.
        """
        self.source = source
        words = [word.strip() for word in text.split(",") if word.strip()]
        self._included = [self._entry(word) for word in words if not word.startswith("!")]
        self._excluded = [self._entry(word[1:].strip()) for word in words if word.startswith("!")]
        if not all([words, *self._excluded]):
            raise UsageError(f"{self.source}: names no interface")

    def select(
        self, addresses: Sequence[InterfaceAddress], preferred: str | None, local_index: int
    ) -> InterfaceAddress | None:
        """Return one address, or None where none matches.

        Each entry stands for one network. The ranks of a node are dealt over the entries that match
        here, so two entries spread a node's rails over two networks.

        Args:
            addresses: what this host has.
            preferred: the address to take, if an entry matches several.
            local_index: the number of this rank on its node.
        """
        left = [a for a in addresses if not any(_matches(e, a) for e in self._excluded)]
        entries = self._included or ["*"]
        matches = [[a for a in left if _matches(entry, a)] for entry in entries]
        networks = [found for found in matches if found]
        if not networks:
            return None
        mine = networks[local_index % len(networks)]
        return next((a for a in mine if a.address == preferred), mine[0])

    def _entry(self, word: str) -> str | _Network:
        try:
            return ipaddress.ip_network(word, strict=False)
        except ValueError as error:
            if "/" not in word and not word.replace(".", "").isdigit():
                return word
            raise UsageError(f"{self.source}: {word} is no network: {error}") from error


def _matches(entry: str | _Network, address: InterfaceAddress) -> bool:
    if not isinstance(entry, str):
        return ipaddress.ip_address(address.address) in entry
    if address.is_loopback:
        return address.interface == entry
    return entry == address.label or fnmatch.fnmatchcase(address.interface, entry)


def from_nccl(text: str) -> str:
    """Return the list for a value of `NCCL_SOCKET_IFNAME`.

    Its names are beginnings of names, unless `=` stands before them; `^` leaves them out.
    """
    left_out = text.startswith("^")
    rest = text[left_out:]
    exact = rest.startswith("=")
    names = [name.strip() for name in rest[exact:].split(",") if name.strip()]
    return ",".join("!" * left_out + name + "*" * (not exact) for name in names)
