"""Workers on this machine: started, watched, and ended together."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

from trainer.options import Config, ConfigError

__all__ = ["WORKER", "launch", "run_worker", "thread_count"]

WORKER = (sys.executable, "-m", "trainer.run")

_POLL = 0.05  # seconds between looks at the workers
_GRACE = 1.0  # seconds: for the root cause to show after a first failure; to leave after SIGTERM
_TEXT_LIMIT = 16 << 10  # bytes of a failed worker's words that are shown
_FAILED, _LOST_PEER = 1, 3  # exit codes of a worker: its own fault; another worker's
_PR_SET_PDEATHSIG = 1


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


@dataclass(frozen=True, slots=True)
class _Worker:
    rank: int
    process: subprocess.Popen[bytes]
    words: IO[bytes]  # an unlinked file: the error, and but for rank 0 all of stderr


def launch(config: Config, command: Sequence[str] = WORKER) -> int:
    """Runs the job as `config.processes` processes on this machine; the exit code for the shell.

    Each worker is `command` with the configuration's arguments.

    The first worker that fails ends the job, and its error is printed, once. Ctrl-C, SIGTERM and
    SIGHUP end all workers at once; should this process be killed, the kernel kills them.
    ConfigError if the run directory cannot be made.
    """
    _make_run_directory(Path(config.out))
    workers: list[_Worker] = []
    with _termination_raises():
        try:
            environ = _job_environ(config)
            arguments = [*command, *config.to_argv()]
            workers.extend(_start(arguments, rank, environ) for rank in range(config.processes))
            failed = _wait(workers)
            if failed is not None:
                _stop(workers)
                _explain(failed, workers)
            return 0 if failed is None else 1
        except KeyboardInterrupt:
            _stop(workers)
            print("\ntrainer: stopped by Ctrl-C", file=sys.stderr)
            return 128 + signal.SIGINT
        finally:
            _stop(workers)
            if sys.stdout.isatty():
                print("\033[?25h", end="", flush=True)  # a killed progress line hid the cursor


def run_worker(work: Callable[[], None]) -> int:
    """Calls `work` as one worker of a job; returns 0, or ends the process.

    For a worker that `launch` started, an exception goes to the launcher, and the process leaves
    at once, without the seconds that unloading everything takes: other workers wait for it.
    """
    launcher = os.environ.get("TRAINER_LAUNCHER")
    if launcher is None:  # torchrun and its like deal with exceptions themselves
        work()
        return 0
    parent, error_file = (int(number) for number in launcher.split(":"))
    _die_with(parent)
    try:
        work()
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(error_file, traceback.format_exc()[-_TEXT_LIMIT:].encode())
            sys.stdout.flush()
        os._exit(_LOST_PEER if isinstance(error, (ConnectionError, TimeoutError)) else _FAILED)
    return 0


def _make_run_directory(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"--out {path}: already holds something; name another directory")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--out {path}: cannot be made ({error.strerror}); name a directory that can"
        ) from None


def _job_environ(config: Config) -> dict[str, str]:
    with socket.socket() as probe:  # a port that is free now; rank 0 binds it a second later
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(thread_count(config.threads, config.processes)),
        "WORLD_SIZE": str(config.processes),
        "LOCAL_WORLD_SIZE": str(config.processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _start(command: Sequence[str], rank: int, environ: dict[str, str]) -> _Worker:
    words = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
    process = subprocess.Popen(
        command,
        env={
            **environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "TRAINER_LAUNCHER": f"{os.getpid()}:{words.fileno()}",
        },
        stdin=subprocess.DEVNULL,
        stdout=None if rank == 0 else subprocess.DEVNULL,
        stderr=None if rank == 0 else words,
        pass_fds=[words.fileno()],
        start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the workers
    )
    return _Worker(rank, process, words)


def _wait(workers: list[_Worker]) -> _Worker | None:
    """Waits until all workers succeeded (None), or for the one whose failure began it all.

    A worker that only lost its peer fails too, perhaps first seen: for a moment after the first
    failure a better culprit may come, best one killed by a signal, then one with an own error.
    """
    culprit: _Worker | None = None
    deadline = float("inf")
    while time.monotonic() < deadline:
        codes = {worker.rank: worker.process.poll() for worker in workers}
        if all(code == 0 for code in codes.values()):
            return None
        failed = [worker for worker in workers if codes[worker.rank]]
        if failed:
            first = [culprit] if culprit else []
            culprit = min([*first, *failed], key=lambda worker: _blame(codes[worker.rank]))
            deadline = min(deadline, time.monotonic() + _GRACE)
            if _blame(codes[culprit.rank]) < _LOST_PEER:
                return culprit
        time.sleep(_POLL)
    return culprit


def _blame(code: int | None) -> int:
    return 0 if code is None or code < 0 else code


def _stop(workers: list[_Worker]) -> None:
    for action in (signal.SIGTERM, signal.SIGKILL):
        alive = [worker for worker in workers if worker.process.poll() is None]
        for worker in alive:
            worker.process.send_signal(action)
        deadline = time.monotonic() + _GRACE
        for worker in alive:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, deadline - time.monotonic()))


def _explain(failed: _Worker, workers: list[_Worker]) -> None:
    failed.words.seek(0, os.SEEK_END)
    failed.words.seek(max(0, failed.words.tell() - _TEXT_LIMIT))
    text = failed.words.read().decode(errors="replace").strip()
    code = failed.process.returncode
    how = f"failed with exit code {code}"
    if code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            how += " (is there enough memory? --workers or --batch make it less)"
    print(
        f"{text}\ntrainer: worker {failed.rank} of {len(workers)} {how}; the others were stopped",
        file=sys.stderr,
    )


@contextlib.contextmanager
def _termination_raises() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind this process as Ctrl-C does, with the usual exit codes."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, leave) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _die_with(parent: int) -> None:
    """The kernel kills this process when the launcher dies, however it dies."""
    with contextlib.suppress(AttributeError, OSError):  # Linux only
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(_FAILED)
