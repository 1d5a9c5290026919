"""Ranks of a command on this machine: started, watched, and ended together."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from allreduce.commands.local_processes import LocalProcesses, how_it_ended
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
    command = [sys.executable, "-m", program, *arguments]
    store = TcpStore(_HOST, 0, True, _STORE_TIMEOUT)
    try:
        with LocalProcesses() as processes:
            for rank in range(ranks):
                child = f"{rank}:{store.port}:{os.getpid()}"
                processes.start(command, os.environ | {_VARIABLE: child})
            failed = _first_failure(processes)
            processes.wait(_GRACE if failed is not None else 0.0)
            code = 0 if failed is None else processes[failed].returncode
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        store.close()
    if code < 0:
        print(f"{program}: rank {failed} {how_it_ended(code)}", file=sys.stderr)
    return max(1, code) if code else 0


def _first_failure(processes: LocalProcesses) -> int | None:
    """Wait until a rank has failed, and return it; None if all end well."""
    while True:
        codes = processes.codes()
        bad = {rank: code for rank, code in enumerate(codes) if code}
        if bad:
            return min(bad, key=lambda rank: bad[rank])  # one that a signal killed comes first
        if None not in codes:
            return None
        time.sleep(_POLL)
