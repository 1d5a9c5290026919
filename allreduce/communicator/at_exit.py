"""What happens to open communicators when their process exits or forks."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING

from allreduce import _C

if TYPE_CHECKING:
    from allreduce.communicator.communicator import Communicator

_FOR_DAEMONS = 0.05  # seconds

_open: weakref.WeakSet[Communicator] = weakref.WeakSet()


def add(comm: Communicator) -> None:
    """Look after a communicator while it lives."""
    _open.add(comm)


def _close_all() -> None:
    """Say goodbye at exit, so that peers can tell an exit from a crash."""
    _C.set_exiting()
    for comm in list(_open):
        with contextlib.suppress(Exception):
            comm.close()
    # Daemon threads may be on their way from a call, through other libraries, to the interpreter's
    # lock. Once it ends they would be stopped there, by an exception that few libraries survive.
    if threading.active_count() > 1:
        time.sleep(_FOR_DAEMONS)


def _leave_child() -> None:
    """Close what a forked child must not hold; the core's own descriptors are closed already."""
    for comm in list(_open):
        comm._connections.leave_child()
    _open.clear()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_leave_child)
