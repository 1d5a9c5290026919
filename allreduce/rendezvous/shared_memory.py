"""Descriptors that the ranks of a node share: memfd arena, doorbells, and how they travel."""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import resource
import select
import socket
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from allreduce.errors import PeerError, SystemCallError, Timeout, UsageError

# magic, number of descriptors, bytes of the first one (0: unspecified)
_MESSAGE = struct.Struct("<4sIQ")
_MAGIC = b"HFDS"
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
# As a container sees its own.
_CGROUP_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)
MAX_FDS = 253  # the kernel's limit for one message


def raise_descriptor_limit(wanted: int) -> int:
    """Return how many descriptors this process may have, raised to the hard limit if `wanted` is
    more than it may have so far.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted and soft != hard:
        # What the hard limit allows, the kernel may refuse for reasons of its own.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def create_shared_memory(size: int, name: str = "allreduce", allocate: bool = True) -> int:
    """Return a memfd of `size` bytes that nobody can shrink; nameless, it dies with its users.

    The pages are allocated here, or by those who write them (`allocate` False): a write into a hole
    kills by SIGBUS when memory runs out. And the kernel sets no limit to a memfd: it kills
    processes, whoever's they are. So what is plainly too much is refused before it is tried.

    Raises:
        SystemCallError: there is not that much memory.
    """
    available = memory_available()
    if size > available:
        raise SystemCallError(
            errno.ENOMEM,
            f"cannot allocate {size} B of shared memory: {available} B are available; free memory "
            "on this host, raise the memory limit of the container, or use smaller buffers",
        )
    fd = -1
    try:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        if allocate:
            os.posix_fallocate(fd, 0, size)
        else:
            os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as error:
        close_fds([fd])
        remedy = (
            "raise ulimit -n"
            if error.errno in (errno.EMFILE, errno.ENFILE)
            else "free memory on this host, raise the memory limit of the container, or use "
            "smaller buffers"
        )
        raise SystemCallError(
            error.errno, f"cannot allocate {size} B of shared memory: {error.strerror}; {remedy}"
        ) from error
    return fd


def memory_available() -> int:
    """Return the most bytes that this host and this container's limit could give at this time."""
    available = 1 << 62
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, value, *_unit = line.split()
            if name == "MemAvailable:":
                available = int(value) * 1024
    for limit in _CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number and no limit
            # What the cgroup uses already is mostly cache that it can drop, so it is not counted.
            available = min(available, int(Path(limit).read_text()))
    return available


class Arena:
    """The shared memory of a node and an eventfd per local rank; empty for a rank alone."""

    def __init__(self) -> None:
        self.fd = -1
        self.size = 0
        self.doorbells: list[int] = []

    def create(self, size: int, local_size: int) -> None:
        """Make `size` bytes and `local_size` doorbells; on the node's lowest rank. The core
        allocates the pages as it needs them.
        """
        self.size = size
        self.fd = create_shared_memory(size, "allreduce-arena", allocate=False)
        for _ in range(local_size):
            self.doorbells.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

    def send(self, sock: socket.socket) -> None:
        """Send everything to another rank of the node."""
        send_fds(sock, [self.fd, *self.doorbells], self.size)

    def receive(self, sock: socket.socket) -> None:
        """Take what `send` sent; ValueError where it is not the size that this rank expects."""
        self.fd, *self.doorbells = receive_fds(sock)
        check_shared_memory(self.fd, self.size)

    def close(self) -> None:
        """Close all descriptors."""
        close_fds([self.fd, *self.doorbells])
        self.fd, self.doorbells = -1, []


def check_shared_memory(fd: int, size: int) -> None:
    """Make sure that a received memfd has `size` bytes for good; ValueError otherwise."""
    actual = os.fstat(fd).st_size
    if actual != size:
        raise UsageError(
            f"the node's shared memory has {actual} B, this rank expects {size} B; "
            "give all ranks of a node the same buffer sizes and the same version of this package"
        )
    if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
        raise UsageError("the node's shared memory is not sealed against shrinking")


def send_fds(sock: socket.socket, fds: Sequence[int], size: int = 0) -> None:
    """Send descriptors over a Unix socket; BlockingIOError where there is no room."""
    message = _MESSAGE.pack(_MAGIC, len(fds), size)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([message], rights)


def receive_fds(sock: socket.socket) -> list[int]:
    """Receive what `send_fds` sent, close-on-exec; BlockingIOError where nothing came yet.

    Raises:
        ConnectionError: the sender closed the connection or sent something else.
        OSError: this process has no descriptors left (EMFILE).
    """
    message, ancillary, flags, _address = sock.recvmsg(
        _MESSAGE.size,
        socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize),
        socket.MSG_CMSG_CLOEXEC,
    )
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    try:
        if flags & socket.MSG_CTRUNC:
            raise SystemCallError(
                errno.EMFILE, "no descriptors left to receive shared memory; raise ulimit -n"
            )
        if not message:
            raise ConnectionResetError(errno.ECONNRESET, "connection closed")
        if len(message) != _MESSAGE.size or _MESSAGE.unpack(message)[:2] != (_MAGIC, len(fds)):
            raise ConnectionError("an unexpected message where descriptors were due")
    except BaseException:
        close_fds(list(fds))
        raise
    return list(fds)


def share_fd(links: Sequence[socket.socket], is_leader: bool, fd: int, deadline: float) -> int:
    """Give the leader's descriptor to every rank of the node. All ranks of the node call this in
    the same order.

    Args:
        links: `Connections.fd_links`; the leader's are in local-rank order from local rank 1.
        is_leader: whether this is the node's lowest rank.
        fd: the leader's descriptor, or -1 to tell the others that there is none; ignored elsewhere.
            It stays the caller's.
        deadline: monotonic seconds.

    Returns:
        The leader's own `fd`, or this rank's duplicate of it (close-on-exec, the caller closes it).

    Raises:
        TimeoutError: the deadline passed.
        ConnectionError: a rank of the node is gone, or the leader had no descriptor to give.
    """
    if not is_leader:
        _wait(
            links[0],
            select.POLLIN,
            deadline,
            "the node's lowest rank has not sent its shared memory",
        )
        try:
            fds = receive_fds(links[0])
        except ConnectionError as error:
            raise PeerError(f"the node's lowest rank is gone: {error}") from error
        if not fds:
            raise PeerError(
                "the node's lowest rank could not allocate shared memory; see its own error"
            )
        close_fds(fds[1:])
        return fds[0]
    for local_rank, link in enumerate(links, start=1):
        what = f"local rank {local_rank}"
        try:
            while True:
                try:
                    send_fds(link, [fd] if fd >= 0 else [])
                    break
                except BlockingIOError:
                    _wait(link, select.POLLOUT, deadline, f"{what} does not take the shared memory")
        except (BrokenPipeError, ConnectionError) as error:
            raise PeerError(f"{what} of this node is gone: {error}") from error
    return fd


def close_fds(fds: Sequence[int]) -> None:
    """Close every descriptor that is not -1."""
    for fd in fds:
        if fd >= 0:
            os.close(fd)


def _wait(sock: socket.socket, events: int, deadline: float, problem: str) -> None:
    poller = select.poll()
    poller.register(sock, events)
    if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise Timeout(f"{problem} within the deadline; that rank has probably died or is stuck")
