"""Runs one test of the suite: forks a process for each rank, waits, and says how the test went.

The suite's own launcher spawns its ranks, each of which imports torch, for seconds; and it looks at
the exit status of rank 0 only. These are forked from a process that has imported everything and has
no threads.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

_LOG_CHARACTERS = 6000  # of each rank, in a failure
_PATIENCE = 3.0  # seconds for the other ranks to end, once one has failed
# What torch puts before each line of its log, and its list of C++ frames.
_NOISE = re.compile(r"^\[rank\d+\]:\S+ \S+ \d+ \S+\] |^(#|frame #)\d+:? .*\n", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a test went, and why it was skipped or failed."""

    name: str
    outcome: str  # passed, failed, skipped
    why: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Launcher:
    """What all tests of a run share."""

    suite: ModuleType
    case: Any  # the suite's class of tests, whose _run is a rank's life
    ranks: int
    deadline: float  # seconds
    skips: Mapping[int, str]  # exit statuses by which ranks say that they skipped the test


class Run:
    """A test that runs, in one process per rank."""

    def __init__(self, launcher: Launcher, name: str):
        self.name = name
        self._skips = launcher.skips
        self._begin = time.monotonic()
        self._until = self._begin + launcher.deadline
        self._folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
        for folder in ("barrier", "test_dir", "init_dir"):  # as the suite expects them
            (self._folder / folder).mkdir()
        self._running: dict[int, int] = {}  # rank by process
        for rank in range(launcher.ranks):
            sys.stdout.flush()
            pid = os.fork() or _be_rank(launcher, name, rank, self._folder)
            self._running[pid] = rank
        self._ended: dict[int, int] = {}  # exit status by rank, in the order of their ends

    def poll(self) -> Result | None:
        """The result, if the test has ended; ends it if its time is over or a rank has failed."""
        for pid, rank in list(self._running.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                del self._running[pid]
                self._ended[rank] = os.waitstatus_to_exitcode(status)
                if not self._fine(rank):
                    self._until = min(self._until, time.monotonic() + _PATIENCE)
        if self._running and time.monotonic() < self._until:
            return None
        late = sorted(self._running.values())
        self.stop()
        result = self._result(late)
        shutil.rmtree(self._folder)
        return result

    def stop(self) -> None:
        """Ends the ranks that still run; they write down where they are."""
        for pid in self._running:
            os.kill(pid, signal.SIGUSR1)
        time.sleep(0.5 if self._running else 0)
        for pid in self._running:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self._running.clear()

    def _fine(self, rank: int) -> bool:
        return self._ended[rank] in (0, *self._skips)

    def _result(self, late: list[int]) -> Result:
        seconds = round(time.monotonic() - self._begin, 2)
        statuses = set(self._ended.values())
        if not late and all(map(self._fine, self._ended)) and len(statuses) == 1:
            why = self._skips.get(statuses.pop(), "")
            outcome = "skipped" if why else "passed"
        else:
            first = sorted(self._ended, key=self._fine)  # those that failed, as they did
            logs = [self._log(rank, _text(self._ended[rank])) for rank in first]
            logs += [self._log(rank, "was stopped") for rank in late]
            outcome, why = "failed", "\n".join(logs)
        return Result(name=self.name, outcome=outcome, why=why, seconds=seconds)

    def _log(self, rank: int, end: str) -> str:
        log = (self._folder / f"rank{rank}.log").read_text(errors="replace")
        return f"--- rank {rank} {end}\n{_NOISE.sub('', log)[-_LOG_CHARACTERS:]}"


def _text(status: int) -> str:
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"


def _be_rank(launcher: Launcher, name: str, rank: int, folder: Path) -> NoReturn:
    status = 1
    try:
        _prepare(launcher.suite, folder, rank)
        ours, theirs = multiprocessing.Pipe()  # for errors, which are in the log too
        with contextlib.closing(ours):
            launcher.case._run(rank, name, str(folder / "store"), theirs)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    # Not the interpreter's own end: it takes a second, and would unwind the parent's frames.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(status)


def _prepare(suite: ModuleType, folder: Path, rank: int) -> None:
    """What the suite's launcher would give a rank, and a log."""
    log = (folder / f"rank{rank}.log").open("a", buffering=1)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    sys.stdout = sys.stderr = log
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    os.environ["TEMP_DIR"] = str(folder)
    suite.INIT_METHOD = f"file://{folder}/init_dir/shared_init_file"
