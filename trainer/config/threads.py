"""How many threads a worker computes with."""

from __future__ import annotations

import os

__all__ = ["thread_count"]


def thread_count(threads: int, local_workers: int) -> int:
    """Compute threads for one of `local_workers` workers on this machine; `threads` 0 = fair share.

    The share is of the cores this process may use, and OMP_NUM_THREADS overrides it.
    """
    if threads:
        return threads
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return max(1, len(os.sched_getaffinity(0)) // local_workers)
