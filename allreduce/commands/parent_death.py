"""Ties a child process to its parent, so that nothing runs on after a kill -9."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

__all__ = ["die_with_parent"]

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when its parent dies, however the parent dies.

    Args:
        parent: the process id of the parent. Where it has died already, this process ends here.
    """
    with contextlib.suppress(AttributeError, OSError):  # Linux only
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)
