"""How many system calls a turn takes: the kernel's own count, for every player alike."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.peers import Absent

_EVENT = "raw_syscalls:sys_enter"
_START = 0.3  # seconds that perf gets to attach
_DEADLINE = 20


def processes_below(pid: int) -> Iterator[int]:
    """Yield a process and all its descendants."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from processes_below(int(child))


def count(pids: list[int], turn: Callable[[], object]) -> int:
    """Return the system calls of these processes and their threads during `turn`.

    Raises:
        Absent: perf is not installed, or may not look (it needs root or CAP_PERFMON).
    """
    perf = shutil.which("perf")
    if perf is None:
        raise Absent("perf is not installed: apt install linux-perf")
    joined = ",".join(map(str, pids))
    command = [perf, "stat", "-x", ",", "-e", _EVENT, "-p", joined]
    counter = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        time.sleep(_START)
        turn()
    finally:
        counter.send_signal(signal.SIGINT)
        text = counter.communicate(timeout=_DEADLINE)[1]
    field = next((line.split(",")[0] for line in text.splitlines() if _EVENT in line), "")
    if not field.isdigit():
        raise Absent(f"perf cannot count {_EVENT}: {text.strip()[-200:]}")
    return int(field)
