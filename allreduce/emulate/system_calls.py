"""System calls for hosts in namespaces: those for which Python 3.11 has no function."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct

__all__ = ["bring_up", "mount", "open_tun", "set_address", "set_host_name", "unshare"]

NEW_MOUNTS, NEW_HOST_NAME, NEW_IPC = 0x00020000, 0x04000000, 0x08000000  # of linux/sched.h
NEW_USER, NEW_PROCESSES, NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
BIND, RECURSIVE, PRIVATE = 0x1000, 0x4000, 1 << 18  # of linux/mount.h

# linux/sockios.h
_SET_FLAGS, _SET_ADDRESS, _SET_NETMASK, _SET_MTU = 0x8914, 0x8916, 0x891C, 0x8922
_SET_QUEUE_LENGTH = 0x8943
_UP_AND_RUNNING = 0x41
# linux/if_tun.h
_TUN_SET, _TUN_SET_OFFLOAD, _TUN_SET_HEADER = 0x400454CA, 0x400454D0, 0x400454D8
_TUN, _NO_PACKET_INFO, _VIRTIO_HEADER = 0x0001, 0x1000, 0x4000
_CHECKSUMS, _TCP4_SEGMENTS = 0x01, 0x02
VIRTIO_HEADER_BYTES = 10
_QUEUE_PACKETS = 4096
# linux/rtnetlink.h and linux/pkt_sched.h
_NEW_QDISC, _CREATE_AND_ANSWER, _ROOT, _ETHERNET = 36, 0x505, 0xFFFFFFFF, 1
_KIND, _OPTIONS, _TBF_PARAMETERS, _TBF_RATE, _TBF_BURST = 1, 2, 1, 4, 6

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """Enter new namespaces."""
    _check(_libc.unshare(flags), "unshare")


def set_host_name(name: str) -> None:
    """Give this UTS namespace a name."""
    _check(_libc.sethostname(name.encode(), len(name)), "sethostname")


def mount(source: str, target: str, kind: str = "", flags: int = 0) -> None:
    """Mount a file system, or a file over another."""
    words = (word.encode() for word in (source, target, kind))
    _check(_libc.mount(*words, flags, None), f"mount {source} on {target}")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def open_tun(name: str, *, segments: bool) -> int:
    """Make a TUN device in this network namespace; return the descriptor of its other end.

    segments: the kernel hands over up to 64 KiB of a TCP stream as one packet.
    """
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    kind = _TUN | _NO_PACKET_INFO | _VIRTIO_HEADER
    _control(tun, _TUN_SET, struct.pack("16sH22x", name.encode(), kind), "make a TUN device")
    size = struct.pack("i", VIRTIO_HEADER_BYTES)
    _control(tun, _TUN_SET_HEADER, size, "set a TUN device's header")
    offload = _CHECKSUMS | _TCP4_SEGMENTS if segments else 0
    _control(tun, _TUN_SET_OFFLOAD, offload, "set a TUN device's offloads")
    return tun


def set_address(device: str, address: str, mtu: int) -> None:
    """Give a device an address in 10.231.0.0/16, and bring it up."""
    with _any_socket() as here:

        def set_inet(request: int, value: str) -> None:
            inet = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(value))
            words = struct.pack("16s16s8x", device.encode(), inet)
            _control(here, request, words, f"give {device} {value}")

        def set_number(request: int, value: int, what: str) -> None:
            _control(here, request, struct.pack("16si20x", device.encode(), value), what)

        set_number(_SET_MTU, mtu, f"set the MTU of {device} to {mtu}")
        with contextlib.suppress(PermissionError):  # not in a user namespace: 500 packets then
            set_number(_SET_QUEUE_LENGTH, _QUEUE_PACKETS, f"set the queue of {device}")
        set_inet(_SET_ADDRESS, address)
        set_inet(_SET_NETMASK, "255.255.0.0")
    bring_up(device)


def limit_rate(device: str, rate: float, burst: int, queue: int) -> None:
    """Let a device send at most `rate` bytes per second: a token bucket filter as its queue.

    burst: bytes that a device that was idle may send at once, at least those of a packet. queue:
    bytes that wait.
    """
    spec = struct.pack("BBHhHI", 0, _ETHERNET, 0, 0, 0, min(int(rate), 0xFFFFFFFF))
    bucket = spec + bytes(len(spec)) + struct.pack("III", queue, 0, 0)
    options = _attribute(_TBF_PARAMETERS, bucket)
    options += _attribute(_TBF_RATE, struct.pack("Q", int(rate)))
    options += _attribute(_TBF_BURST, struct.pack("I", burst))
    body = struct.pack("BxxxiIII", 0, socket.if_nametoindex(device), 0, _ROOT, 0)
    body += _attribute(_KIND, b"tbf\0") + _attribute(_OPTIONS, options)
    header = struct.pack("IHHII", 16 + len(body), _NEW_QDISC, _CREATE_AND_ANSWER, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.send(header + body)
        (error,) = struct.unpack_from("i", kernel.recv(4096), 16)
    if error:
        raise OSError(-error, f"limit the rate of {device} by tbf: {os.strerror(-error)}")


def _attribute(kind: int, data: bytes) -> bytes:
    padding = bytes(-len(data) % 4)
    return struct.pack("HH", 4 + len(data), kind) + data + padding


def bring_up(device: str) -> None:
    """Bring a device up."""
    flags = struct.pack("16sH22x", device.encode(), _UP_AND_RUNNING)
    with _any_socket() as here:
        _control(here, _SET_FLAGS, flags, f"bring {device} up")


def _any_socket() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def _control(file: int | socket.socket, request: int, argument: bytes | int, what: str) -> None:
    try:
        fcntl.ioctl(file, request, argument)
    except OSError as error:
        raise OSError(error.errno, f"{what}: {error.strerror}") from None
