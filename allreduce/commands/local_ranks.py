"""Ranks of a command on this machine: started, watched, and ended together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from allreduce.rendezvous.store import Store
from allreduce.rendezvous.tcp_store import TcpStore

__all__ = ["ChildRank", "run"]

_VARIABLE = "ALLREDUCE_COMMAND_RANK"
_HOST = "127.0.0.1"
_POLL = 0.02  # seconds between looks at the ranks
_GRACE = 5.0  # seconds that ranks get to say what they have, once one has failed
_STORE_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class ChildRank:
    """What a process that `run` started knows: its rank, and the port of its parent's store."""

    rank: int
    port: int
    parent: int

    @classmethod
    def taken(cls) -> ChildRank | None:
        """Return what this process is; None if `run` did not start it."""
        text = os.environ.get(_VARIABLE)
        return cls(*map(int, text.split(":"))) if text else None

    def store(self, timeout: float) -> Store:
        """Return the store of the job."""
        return TcpStore(_HOST, self.port, False, timeout)


def run(ranks: int, program: str, arguments: Sequence[str]) -> int:
    """Run a module with these arguments on `ranks` processes; the exit status for the shell.

    It is that of the first rank which fails; 1 where a signal killed it.
    """
    processes: list[subprocess.Popen[bytes]] = []
    store = TcpStore(_HOST, 0, True, _STORE_TIMEOUT)
    try:
        for rank in range(ranks):
            child = f"{rank}:{store.port}:{os.getpid()}"
            command = [sys.executable, "-m", program, *arguments]
            processes.append(
                subprocess.Popen(
                    command,
                    env=os.environ | {_VARIABLE: child},
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C is for this process, which ends the ranks
                )
            )
        failed = _wait(processes)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        for process in processes:
            process.kill()
            process.wait()
        store.close()
    if failed is None:
        return 0
    code = processes[failed].returncode
    if code < 0:
        how = signal.Signals(-code).name
        print(f"{program}: rank {failed} was killed by {how}", file=sys.stderr)
    return max(1, code)


def _wait(processes: list[subprocess.Popen[bytes]]) -> int | None:
    """Wait for all to end, for some seconds only once one has failed; return the first that did."""
    failed, deadline = None, float("inf")
    while time.monotonic() < deadline:
        codes = [process.poll() for process in processes]
        bad = {rank: code for rank, code in enumerate(codes) if code}
        if bad and failed is None:
            failed = min(bad, key=lambda rank: bad[rank])  # one that a signal killed comes first
            deadline = time.monotonic() + _GRACE
        if None not in codes:
            break
        time.sleep(_POLL)
    return failed
