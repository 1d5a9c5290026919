"""Forked children that a test waits for. Functions are shipped to ranks by their source."""

import os
import signal
import time


def exit_code(pid: int) -> int:
    """What the child ended with; 77 if it hung and was killed."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return 77
