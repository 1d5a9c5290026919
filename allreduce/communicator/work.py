"""The core's handles: works and the group that makes them."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from allreduce import _C
from allreduce.errors import Error, Timeout, UsageError
from allreduce.rendezvous.connect import Connections


class Work:
    """A collective or message under way. Its array must not be touched before `wait` returns.

    Later collectives of the group may be given the array: they run after this one.
    """

    def __init__(self, group: _C.Group, work: _C.Work, result: Any) -> None:
        self._group = group
        self._work = work
        self._result = result
        self._called_at = _caller()

    def wait(self, timeout: float | None = None) -> Any:
        """Wait for the end and return the array; the collective's error is raised here.

        An error has a note with the file and line of the call (from Python 3.11 on).

        Raises:
            Timeout: `timeout` seconds passed first; the collective goes on.
        """
        try:
            if not self._group.wait(self._work, -1.0 if timeout is None else timeout):
                raise Timeout(f"the collective has not ended after {timeout} s; it goes on")
        except Error as error:
            if sys.version_info >= (3, 11):
                error.add_note("called at {}:{}".format(*self._called_at))
            raise
        return self._result

    def done(self) -> bool:
        """Return whether the collective has ended, in success or error."""
        return self._work.done()

    @property
    def source(self) -> int:
        """Of a receive that has ended: the rank that sent the message."""
        return self._work.source

    @property
    def tag(self) -> int:
        """Of a receive that has ended: the message's tag."""
        return self._work.tag


def _caller() -> tuple[str, int]:
    """Return the file and line of the call that came into this package."""
    frame: FrameType | None = sys._getframe(2)
    while frame and str(frame.f_globals.get("__name__")).startswith("allreduce."):
        frame = frame.f_back
    return (frame.f_code.co_filename, frame.f_lineno) if frame else ("an unknown place", 0)


def make_group(connections: Connections, options: dict[str, Any]) -> _C.Group:
    """Hand the descriptors to a new core group; `options` as from_store made them."""
    try:
        group = _C.Group(
            rank=connections.rank,
            node_of_rank=connections.node_of_rank,
            group_id=connections.group_id,
            generation=connections.generation,
            lanes=options["lanes"],
            timeout=options["timeout"],
            hierarchical=options["local"] != "none",
            rails=1 if options["local"] == "reduce_bcast" else options["rails"],
            segment_bytes=options["segment_bytes"],
            ranks_on_host=connections.ranks_on_host,
            checksum=connections.checksum,
            dead_after=connections.dead_after,
            one_host=connections.one_host,
            hosts=connections.hosts,
            control=connections.control,
            data=connections.data,
            connector=connections.connector_fd,
            arena=connections.arena_fd,
            doorbells=connections.doorbells,
        )
        if connections.connector:
            connections.connector.start(group, connections.control.values())
    except TypeError as error:  # before the core owned the descriptors
        connections.close()
        raise UsageError(f"an option has the wrong type: {error}") from None
    except BaseException:
        connections.close_own()
        raise
    return group
