"""Processes on this machine that are started one by one, watched together, and ended together."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

__all__ = ["LocalProcesses", "how_it_ended"]

Stream = IO[bytes] | IO[str] | int | None

_POLL = 0.01  # seconds between looks at the processes
_DEATH = 5.0  # seconds that killed processes get


class LocalProcesses:
    """Child processes in the order of their start. As a context, it kills at its end what is left.

    A process that must not outlive a parent which is killed calls `die_with_parent` itself.
    """

    def __init__(self) -> None:
        self._all: list[subprocess.Popen[bytes]] = []
        self._killed = 0  # so many of them; not again, since numbers of processes are given anew

    def start(
        self,
        command: Sequence[str],
        environ: Mapping[str, str] | None = None,
        *,
        cwd: Path | None = None,
        stdin: Stream = subprocess.DEVNULL,
        stdout: Stream = None,
        stderr: Stream = None,
        pass_fds: Sequence[int] = (),
    ) -> subprocess.Popen[bytes]:
        """Start a process in a session of its own.

        So Ctrl-C reaches the caller alone, and `kill` ends the process group of each process.

        Args:
            environ: all variables; None for those of this process.
            cwd, stdin, stdout, stderr, pass_fds: as subprocess.Popen has them.
        """
        process = subprocess.Popen(
            command,
            env=environ,
            cwd=cwd,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=pass_fds,
            start_new_session=True,
        )
        self._all.append(process)
        return process

    def codes(self) -> list[int | None]:
        """Return the exit code of each process: None while it runs, -n if signal n ended it."""
        return [process.poll() for process in self._all]

    def send_signal(self, number: int) -> None:
        """Send a signal to each process that runs, but not to what it has started."""
        for process in self._all:
            process.send_signal(number)

    def wait(self, seconds: float) -> bool:
        """Wait until all processes have ended, or the time is over; return whether all have."""
        deadline = time.monotonic() + seconds
        while None in self.codes():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL)
        return True

    def kill(self) -> None:
        """Kill all processes with all of their process groups, and wait for their end.

        One that the kernel cannot end, in a system call that hangs, is left after some seconds.
        """
        for process in self._all[self._killed :]:
            with suppress(ProcessLookupError, PermissionError):  # nothing of it is left
                os.killpg(process.pid, signal.SIGKILL)
        self._killed = len(self._all)
        self.wait(_DEATH)

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, index: int) -> subprocess.Popen[bytes]:
        return self._all[index]

    def __iter__(self) -> Iterator[subprocess.Popen[bytes]]:
        return iter(self._all)

    def __enter__(self) -> LocalProcesses:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()


def how_it_ended(code: int) -> str:
    """Return what an exit code other than 0 means, in words that follow the process's name."""
    if code >= 0:
        return f"failed with exit code {code}"
    names = {number.value: number.name for number in signal.Signals}  # not of all: real-time ones
    return f"was killed by {names.get(-code, f'signal {-code}')}"
