"""Point-to-point messages of a communicator."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

from allreduce.communicator.arrays import memory_of
from allreduce.communicator.collective_base import Array, CollectiveBase, seconds
from allreduce.communicator.work import Work
from allreduce.errors import UsageError

_ANY = -1  # rank or tag, in the core


class Received(NamedTuple):
    """Whose message a receive has got."""

    source: int
    tag: int


class PointToPoint(CollectiveBase):
    """Messages between two ranks, as MPI has them.

    A message goes to the first receive that fits it, in the order in which both were posted. Both
    ends give the same dtype and number of elements, else `MismatchError`. Up to 128 KiB (and 1 MiB
    in all that a receiver has not asked for yet) `send` returns before the message is received; for
    more than the connection holds, some 100 KiB, the receiver has to be in some call of the group.
    """

    def send(self, x: Array, dest: int, tag: int = 0, *, timeout: float | None = None) -> None:
        """Send `x` to rank `dest`; on return `x` may be changed."""
        self._transfer(True, x, dest, tag, timeout, wait=True)

    def recv(
        self,
        x: Array,
        source: int | None = None,
        tag: int | None = 0,
        *,
        timeout: float | None = None,
    ) -> Received:
        """Receive into `x` from rank `source` (None: any) a message with `tag` (None: any)."""
        work = self._transfer(False, x, source, tag, timeout, wait=True)
        return Received(work.source, work.tag)

    def isend(self, x: Array, dest: int, tag: int = 0, *, timeout: float | None = None) -> Work:
        """Begin to send `x`, which must not be changed before the work has ended."""
        return self._keep(self._transfer(True, x, dest, tag, timeout, wait=False))

    def irecv(
        self,
        x: Array,
        source: int | None = None,
        tag: int | None = 0,
        *,
        timeout: float | None = None,
    ) -> Work:
        """Begin to receive into `x`; the work tells `source` and `tag` once it has ended."""
        return self._keep(self._transfer(False, x, source, tag, timeout, wait=False))

    def _transfer(
        self,
        send: bool,
        x: Array,
        peer: int | None,
        tag: int | None,
        timeout: float | None,
        *,
        wait: bool,
    ) -> Work:
        memory = memory_of(x, "x", self.rank, writable=not send)
        if memory.device:
            raise UsageError(
                f"x on rank {self.rank}: is on a GPU, and messages go between host arrays; "
                "copy it to the host, or use a collective"
            )
        work = self._group.transfer(
            send=send,
            peer=_number(peer, "dest" if send else "source", any_of_them=not send),
            tag=_number(tag, "tag", any_of_them=not send),
            address=memory.address,
            count=memory.count,
            dtype=memory.dtype,
            timeout=seconds(timeout),
            wait=wait,
        )
        return Work(self._group, work, x)


def _number(value: Any, argument: str, *, any_of_them: bool) -> int:
    """A rank or a tag as the core takes it."""
    if value is None and any_of_them:
        return _ANY
    try:
        number = operator.index(value)
    except TypeError:
        number = _ANY
    if not 0 <= number < 1 << 31:
        choice = ", or None for any" if any_of_them else ""
        raise UsageError(f"{argument}={value!r}: must be a whole number, 0 or more{choice}")
    return number
