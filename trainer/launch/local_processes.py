"""Workers on this machine: started, watched, and ended together."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from traceback import format_exc
from types import FrameType
from typing import IO, NoReturn

from allreduce.commands.local_processes import LocalProcesses, how_it_ended
from allreduce.commands.parent_death import die_with_parent
from trainer.checkpoint.find import begin
from trainer.config.options import Config, ConfigError
from trainer.config.threads import thread_count
from trainer.errors import sentence
from trainer.launch.deaths import OUTPUT, STORE, Deaths, open_store
from trainer.launch.stop_signals import SAVED, SIGNALS
from trainer.output.run_lock import own_run_directory

__all__ = ["WORKER", "launch", "run_worker"]

WORKER = (sys.executable, "-m", "trainer.run")

_POLL = 0.05  # seconds between looks at the workers
_GRACE = 1.0  # seconds: for the root cause to show after a first failure; to leave after SIGTERM
_TEXT_LIMIT = 16 << 10  # bytes of a failed worker's words that are shown
_SAVING = 60.0  # seconds for the workers to save and end, once a signal has asked for it
_GOOD = (0, SAVED)  # exit codes of a worker that did what it should
_FAILED, _LOST_PEER = 1, 3  # exit codes of a worker: its own fault; another worker's


def launch(config: Config, command: Sequence[str] = WORKER) -> int:
    """Runs the job as `config.processes` processes on this machine; the exit code for the shell.

    Each worker is `command` with the configuration's arguments.

    The first worker that fails ends the job, and its error is printed, once. With --elastic only
    the last one does; each death is printed. SIGTERM and SIGUSR1
    go on to the workers, which save a checkpoint and end (exit code `SAVED`); a second one,
    Ctrl-C and SIGHUP end all workers at once; should this process be killed, the kernel kills them.
    ConfigError if the run directory cannot be made or gone on from, or belongs to another run.
    """
    if config.machine == 0:  # where rank 0 is, which will own the directory
        begin(config)
        with own_run_directory(Path(config.out)):
            pass
    with (
        _hang_up_raises(),
        open_store(config.elastic) as store,
        LocalProcesses() as workers,
        _forwarding(workers) as asked,
    ):
        try:
            local = config.processes // config.machines
            environ = _job_environ(config, local) | ({STORE: str(store)} if store else {})
            arguments = [*command, *config.to_argv()]
            ranks = range(config.machine * local, (config.machine + 1) * local)
            if config.machine:
                print(
                    f"machine {config.machine} of {config.machines}, with workers {ranks[0]} to "
                    f"{ranks[-1]} of {config.processes}: the output is on machine 0, at "
                    f"{config.master.rpartition(':')[0]}",
                    flush=True,
                )
            words = [_start(workers, arguments, rank, environ) for rank in ranks]
            deaths = _deaths(store, workers, words, config) if store else None
            failed = _wait(workers, asked, deaths)
            if failed is None:
                return max(code for worker in workers if (code := worker.returncode) in _GOOD)
            late = workers[failed].poll() is None
            _stop(workers)
            code = workers[failed].returncode
            if asked and (late or code == -asked[0]):
                return 128 + asked[0]  # too late, or before there was anything to save
            _explain(ranks[failed], code, words[failed], config)
            return 1
        except KeyboardInterrupt:
            _stop(workers)
            print("\ntrainer: stopped by Ctrl-C", file=sys.stderr)
            return 128 + signal.SIGINT
        finally:
            _stop(workers)
            if sys.stdout.isatty():
                print("\033[?25h", end="", flush=True)  # a killed progress line hid the cursor


def run_worker(work: Callable[[], int], *, traceback: bool = False) -> int:
    """Calls `work` as one worker of a job; returns the exit code it gives, or ends the process.

    An error that says all in its sentence (see `sentence`) is shown without its traceback,
    unless that is asked for. For a worker that `launch` started, an exception goes to the launcher,
    and the process leaves at once, without the seconds that unloading everything takes: other
    workers wait for it.
    """
    launcher = os.environ.get("TRAINER_LAUNCHER")
    if launcher is None:  # torchrun and its like deal with other exceptions themselves
        try:
            return work()
        except Exception as error:
            said = None if traceback else sentence(error)
            if said is None:
                raise
            print(f"trainer: rank {os.environ.get('RANK', 0)}: {said}", file=sys.stderr)
            return _exit_code(error)
    parent, error_file = (int(number) for number in launcher.split(":"))
    die_with_parent(parent)
    try:
        return work()
    except BaseException as error:
        with contextlib.suppress(OSError):
            said = None if traceback else sentence(error)
            text = format_exc() if said is None else f"trainer: {said}"
            os.write(error_file, text[-_TEXT_LIMIT:].encode())
            sys.stdout.flush()
        os._exit(_exit_code(error))


def _exit_code(error: BaseException) -> int:
    return _LOST_PEER if isinstance(error, (ConnectionError, TimeoutError)) else _FAILED


def _job_environ(config: Config, local: int) -> dict[str, str]:
    host, _, port = config.master.rpartition(":")
    if not host:
        host, port = "127.0.0.1", str(_port_for_rank_0())
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(thread_count(config.threads, local)),
        "WORLD_SIZE": str(config.processes),
        "LOCAL_WORLD_SIZE": str(local),
        "MASTER_ADDR": host,
        "MASTER_PORT": port,
    }


def _port_for_rank_0() -> int:
    """A port of this machine that is free now; rank 0 binds it a second later.

    Not one of those that the kernel gives to anybody who connects: it could be gone by then.
    """
    for port in random.sample(range(15_000, 30_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise ConfigError("no port from 15000 to 29999 is free on 127.0.0.1; give --master HOST:PORT")


def _start(
    workers: LocalProcesses, command: Sequence[str], rank: int, environ: dict[str, str]
) -> IO[bytes]:
    """Starts a worker; returns an unlinked file for its error, and but for rank 0 all of stderr."""
    words = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
    own = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank % int(environ["LOCAL_WORLD_SIZE"])),
        "TRAINER_LAUNCHER": f"{os.getpid()}:{words.fileno()}",
    }
    passed = [words.fileno()]
    if STORE in environ and rank:  # it may become rank 0
        passed += [os.dup(1), os.dup(2)]
        own[OUTPUT] = f"{passed[1]}:{passed[2]}"
    workers.start(
        command,
        environ | own,
        stdout=None if rank == 0 else subprocess.DEVNULL,
        stderr=None if rank == 0 else words,
        pass_fds=passed,
    )
    for copy in passed[1:]:
        os.close(copy)
    return words


def _wait(workers: LocalProcesses, asked: list[int], deaths: Deaths | None = None) -> int | None:
    """Waits until all workers ended well (None), or for the one whose failure began it all.

    With `deaths` it is enough that one ended well and none runs.

    Where they were `asked` by a signal to save and end, they have a minute for it.

    A worker that only lost its peer fails too, perhaps first seen: for a moment after the first
    failure a better culprit may come, best one killed by a signal, then one with an own error.
    """
    culprit: int | None = None
    deadline = float("inf")
    while time.monotonic() < deadline:
        codes = workers.codes()
        if all(code in _GOOD for code in codes):
            return None
        if deaths:
            deaths.see(codes, _GOOD)
            for worker in deaths.given_up(codes, _SAVING):
                workers[worker].kill()
            if any(code in _GOOD for code in codes):  # the others have gone on without those left
                deadline = min(deadline, time.monotonic() + _SAVING)
                if None not in codes:
                    break
        if asked and deadline == float("inf"):
            deadline = time.monotonic() + _SAVING
        failed = [worker for worker, code in enumerate(codes) if code not in (None, *_GOOD)]
        if deaths:
            failed = [w for w in failed if w not in deaths.told] if deaths.all else []
        if failed:
            first = [] if culprit is None else [culprit]
            culprit = min([*first, *failed], key=lambda worker: _blame(codes[worker]))
            deadline = min(deadline, time.monotonic() + _GRACE)
            if _blame(codes[culprit]) < _LOST_PEER:
                return culprit
        time.sleep(_POLL)
    if deaths and any(code in _GOOD for code in workers.codes()):
        print(f"trainer: {deaths.summary(workers.codes())}", file=sys.stderr)
        return None
    if culprit is None:  # none has failed, but they save for too long
        codes = workers.codes()
        return codes.index(None) if None in codes else 0
    return culprit


def _blame(code: int | None) -> int:
    return 0 if code is None or code < 0 else code


def _stop(workers: LocalProcesses) -> None:
    workers.send_signal(signal.SIGTERM)
    workers.wait(_GRACE)
    workers.kill()


def _deaths(
    store: Path, workers: LocalProcesses, words: Sequence[IO[bytes]], config: Config
) -> Deaths:
    def tell(rank: int) -> None:
        code = None if rank in deaths.silent else workers[rank].returncode
        _explain(rank, code, words[rank], config, then="go on without it")

    deaths = Deaths(store, _GRACE, tell, _what(config))
    return deaths


def _explain(
    rank: int, code: int | None, words: IO[bytes], config: Config, then: str = "were stopped"
) -> None:
    words.seek(0, os.SEEK_END)
    words.seek(max(0, words.tell() - _TEXT_LIMIT))
    text = words.read().decode(errors="replace").strip()
    how = "did not answer, and was stopped" if code is None else how_it_ended(code)
    if code == -signal.SIGKILL:
        how += " (is there enough memory? --workers or --batch make it less)"
    who = f"{_what(config)} {rank} of {config.processes}"
    if config.machines > 1:
        who += f" (on machine {config.machine} of {config.machines})"
    here = " on this machine" * (config.machines > 1)
    print(f"{text}\ntrainer: {who} {how}; the others{here} {then}", file=sys.stderr)


def _what(config: Config) -> str:
    return "worker" if config.workers_virtual == 1 else "process"


@contextlib.contextmanager
def _hang_up_raises() -> Iterator[None]:
    """SIGHUP unwinds this process as Ctrl-C does, with the usual exit code."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGHUP, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@contextlib.contextmanager
def _forwarding(workers: LocalProcesses) -> Iterator[list[int]]:
    """Inside, signals that ask to save and end go on to the workers; gives those that came.

    The second one unwinds this process.
    """
    asked: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        if asked:
            raise SystemExit(128 + number)
        asked.append(number)
        workers.send_signal(number)

    before = [signal.signal(number, forward) for number in SIGNALS]
    try:
        yield asked
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)
