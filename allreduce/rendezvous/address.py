"""Which address a rank binds and tells its peers, and the options of its TCP sockets."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import logging
import math
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from allreduce.errors import UsageError
from allreduce.rendezvous.interfaces import (
    InterfaceOption,
    from_nccl,
    host_addresses,
    interface_of,
)

log = logging.getLogger("allreduce")

Address = tuple[int, Any]  # address family and socket address

_ANY_HOST = "198.51.100.1"  # a documentation address: asking for the route to it sends nothing
_PROC_NET = Path("/proc/sys/net")
_CONGESTION_NAME_MAX = 16
_UNSENT_BYTES = 512 << 10  # that wait in the kernel: some time for a wake-up on a fast network
_DEAD_AFTER = 4.0  # seconds: with what it takes to tell all ranks, less than 5
_DEAD_AFTER_MIN, _DEAD_AFTER_MAX = 2, 86400


def resolve(host: str, port: int) -> Address:
    """Return the first TCP address of `host`; OSError if the name is unknown."""
    with contextlib.suppress(OSError):  # a table of many addresses: no look-ups
        socket.inet_pton(socket.AF_INET, host)
        return socket.AF_INET, (host, port)
    family, _type, _proto, _name, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[
        0
    ]
    return family, address


def is_loopback(address: str) -> bool:
    """Tell whether a numeric address stays inside one host."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    return False


def route_address(host: str) -> str | None:
    """Return this machine's address on the route to `host`, or None. Nothing is sent."""
    try:
        family, address = resolve(host, 9)
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError:
        return None


def bind_address(host: str, port: int, environ: Mapping[str, str] | None = None) -> Address:
    """Return the one address on which rank 0 serves its store as `host`.

    With `ALLREDUCE_ADVERTISE`, `host` may be an address of whatever translates addresses in front
    of this host. The store then listens where this rank does.
    """
    environ = os.environ if environ is None else environ
    family, address = resolve_store(host, port)
    translated = advertised_host(environ) and not interface_of(address[0])
    if translated and not is_loopback(address[0]) and address[0] not in ("0.0.0.0", "::"):
        return resolve(choose_address(False, None, environ), port)
    return family, address


def resolve_store(host: str, port: int) -> Address:
    """Return the address at which all ranks call the store of rank 0, `host`.

    A host name that /etc/hosts maps to loopback (Debian's 127.0.1.1) would shut out other machines,
    so the address of the default route is taken instead; "localhost" and numeric addresses mean
    what they say. A rank for which the name means loopback is on the host of rank 0.
    """
    family, address = resolve(host, port)
    if is_loopback(address[0]) and host != "localhost" and host != address[0]:
        routed = route_address(_ANY_HOST)
        if routed is not None and not is_loopback(routed):
            return resolve(routed, port)
    return family, address


def choose_address(
    one_host: bool,
    route_to: str | None,
    environ: Mapping[str, str] | None = None,
    local_index: int = 0,
) -> str:
    """Return the numeric address on which this rank listens for peers on other nodes.

    The first of these decides: `ALLREDUCE_HOST`, an address or name of this host;
    `ALLREDUCE_IFACE`, see `InterfaceOption`; loopback, if all ranks run on one host;
    `GLOO_SOCKET_IFNAME` and `NCCL_SOCKET_IFNAME`; the route to `route_to`, the host of the store.

    Args:
        local_index: the number of this rank on its node, which chooses among several networks.

    Raises:
        ValueError: the variable makes no sense here, or only loopback is left although ranks run on
            several hosts.
    """
    environ = os.environ if environ is None else environ
    address: str | None
    if host := environ.get("ALLREDUCE_HOST"):
        source, address = f"ALLREDUCE_HOST={host}", _resolve_host_option(host)
    elif words := environ.get("ALLREDUCE_IFACE"):
        source = f"ALLREDUCE_IFACE={words}"
        address = _select_interface(InterfaceOption(words, source), route_to, local_index)
    elif one_host:
        return "127.0.0.1"
    elif chosen := _choice_for_other_libraries(environ, route_to, local_index):
        source, address = chosen
    else:
        source, address = "the route to the other ranks", _address_on_route(route_to)
    if address is None:
        raise UsageError(
            "found no network address for the peers; set ALLREDUCE_HOST or ALLREDUCE_IFACE"
        )
    if not one_host and is_loopback(address):
        raise UsageError(
            f"{source} gives the loopback address {address}, but the ranks run on several hosts; "
            "set ALLREDUCE_HOST or ALLREDUCE_IFACE to a network that all of them reach"
        )
    return address


def advertised_host(environ: Mapping[str, str]) -> str:
    """Return the host of `ALLREDUCE_ADVERTISE`; "" without it."""
    return environ.get("ALLREDUCE_ADVERTISE", "").strip()


def _address_on_route(route_to: str | None) -> str | None:
    address = route_address(route_to) if route_to else None
    if address is None or is_loopback(address):
        address = route_address(_ANY_HOST)
    return address


def _resolve_host_option(host: str) -> str:
    try:
        return str(resolve(host, 0)[1][0])
    except OSError as error:
        raise UsageError(f"ALLREDUCE_HOST={host} cannot be resolved: {error}") from error


def _select_interface(option: InterfaceOption, route_to: str | None, local_index: int) -> str:
    addresses = host_addresses()
    found = option.select(addresses, _address_on_route(route_to), local_index)
    if found is None:
        raise UsageError(
            f"{option.source}: matches no interface that is up and has an address; this host has "
            f"{', '.join(map(str, addresses))}"
        )
    return found.address


def _choice_for_other_libraries(
    environ: Mapping[str, str], route_to: str | None, local_index: int
) -> tuple[str, str] | None:
    """Return what a variable of Gloo or NCCL chooses, and its name; None where there is none.

    A value of no use here is passed over: it may be meant for another library of the program.
    """
    gloo, nccl = environ.get("GLOO_SOCKET_IFNAME", ""), environ.get("NCCL_SOCKET_IFNAME", "")
    for name, text, words in (
        ("GLOO_SOCKET_IFNAME", gloo, gloo),
        ("NCCL_SOCKET_IFNAME", nccl, from_nccl(nccl)),
    ):
        if not words.strip(" ,"):
            continue
        source, routed, found = f"{name}={text}", _address_on_route(route_to), None
        with contextlib.suppress(UsageError):  # words that mean nothing to us
            found = InterfaceOption(words, source).select(host_addresses(), routed, local_index)
        if found is not None and not found.is_loopback:
            log.info("%s chooses %s, as ALLREDUCE_IFACE would", source, found)
            return source, found.address
        log.warning("%s: %s; passed over", source, f"means {found}" if found else "matches nothing")
    return None


def set_congestion_control(sock: socket.socket, name: str | None, loopback: bool) -> None:
    """Set the congestion control of a TCP socket: `name`, else cubic on loopback, else the kernel's
    choice.

    BBR without a pacing queue halves the bandwidth of loopback at twice the processor time; so
    there cubic is tried, and where the kernel does not permit it its default stays.

    Raises:
        ValueError: the kernel has no `name` or does not permit it.
    """
    if name is None:
        if loopback:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        return
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
    except OSError as error:
        raise UsageError(
            f"ALLREDUCE_TCP_CONGESTION={name}: {error.strerror}; the kernel has "
            f"{_kernel_list('available')} "
            f"and permits {_kernel_list('allowed')} to everybody"
        ) from error


def congestion_control(sock: socket.socket) -> str:
    """Return the congestion control in force on a TCP socket."""
    name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _CONGESTION_NAME_MAX)
    return name.split(b"\0")[0].decode()


def dead_after_option(seconds: float | None, environ: Mapping[str, str]) -> float:
    """Return after how many seconds without an answer a host is dead: the argument, else
    `ALLREDUCE_DEAD_AFTER`, else 4.

    Raises:
        ValueError: no number from 2 to 86400. The kernel counts in whole seconds.
    """
    text = environ.get("ALLREDUCE_DEAD_AFTER", "").strip()
    source = f"dead_after={seconds}"
    if seconds is None:
        seconds, source = _DEAD_AFTER, f"ALLREDUCE_DEAD_AFTER={text}"
        if text:
            try:
                seconds = float(text)
            except ValueError:
                seconds = -1.0
    if not _DEAD_AFTER_MIN <= seconds <= _DEAD_AFTER_MAX:
        raise UsageError(
            f"{source}: must be a number of seconds from {_DEAD_AFTER_MIN} to {_DEAD_AFTER_MAX}"
        )
    return float(seconds)


def tune(sock: socket.socket, dead_after: float, loopback: bool) -> None:
    """Set what a connected TCP socket between two ranks has. On loopback no host falls silent."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not loopback:
        set_keepalive(sock, dead_after)
        # What is in the kernel is no longer ours to order: a later round would share the rate.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        if asked := _send_buffer_bytes():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, asked)


@functools.cache
def _send_buffer_bytes() -> int:
    """Return the send buffer to ask for, so that what is under way may fill a long network; 0 where
    the kernel lets a buffer grow further than it grants what is asked for.

    By default it lets one grow to 4 MiB, with room for 2.9 MB under way. 10 Gbit/s and 2 ms one way
    need 5 MB. It is only a limit: what is not under way is bounded by TCP_NOTSENT_LOWAT.
    """
    try:
        granted = int((_PROC_NET / "core/wmem_max").read_text())
        grows_to = int((_PROC_NET / "ipv4/tcp_wmem").read_text().split()[2])
    except (OSError, ValueError, IndexError):
        return 0
    return granted if 2 * granted > grows_to else 0  # the kernel doubles what is asked for


def set_keepalive(sock: socket.socket, dead_after: float) -> None:
    """Let the kernel end a connection whose other host has not answered for `dead_after` seconds.

    It probes only while nothing is under way. The core looks at all else, see
    csrc/transport/silence.h.
    """
    pause = max(1, int(dead_after / 4))
    probes = max(1, math.ceil((dead_after - pause) / pause))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, pause)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, pause)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, probes)


def _kernel_list(which: str) -> str:
    with contextlib.suppress(OSError):
        return (_PROC_NET / f"ipv4/tcp_{which}_congestion_control").read_text().strip()
    return "unknown ones"
