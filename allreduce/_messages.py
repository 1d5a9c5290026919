"""Point-to-point messages of a communicator."""

from __future__ import annotations

from typing import NamedTuple

from allreduce._arrays import memory_of
from allreduce._calls import Array, Calls, seconds
from allreduce._work import Work

_ANY = -1  # rank or tag, in the core


class Received(NamedTuple):
    """Whose message a receive has got."""

    source: int
    tag: int


class PointToPoint(Calls):
    """Messages between two ranks, as MPI has them.

    A message goes to the first receive that fits it, in the order in which both were posted. Both
    ends give the same dtype and number of elements, else `MismatchError`. Up to 32 KiB (and 1 MiB
    in all that a receiver has not asked for yet) `send` returns before the message is received.
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
        work = self._group.transfer(
            send=send,
            peer=_ANY if peer is None else peer,
            tag=_ANY if tag is None else tag,
            address=memory.address,
            count=memory.count,
            dtype=memory.dtype,
            timeout=seconds(timeout),
            wait=wait,
        )
        return Work(work, x)
