"""Worlds of ranks for tests: threads of this process, or processes without torch."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allreduce.commands.local_processes import LocalProcesses
from allreduce.communicator.communicator import Communicator
from allreduce.rendezvous.store import FileStore, MemoryStore, Store

TIMEOUT = 30.0  # seconds: four times what a busy machine needs
# Sanitizers watch threads; a process under them takes seconds to start and tells nothing new.
SANITIZED = bool(os.environ.get("HIER_SANITIZED"))


class RankFailed(AssertionError):
    """A rank of a world raised; the text holds every rank's traceback."""


def run_threads(
    world_size: int,
    body: Callable[[Communicator], Any],
    *,
    timeout: float = TIMEOUT,
    errors: bool = False,
    store: Store | None = None,
    per_rank: Callable[[int], dict[str, Any]] | None = None,
    **options: Any,
) -> list[Any]:
    """Run `body(comm)` on `world_size` threads as ranks and return its results in rank order.

    With `errors`, a rank's exception takes the place of its result; else any one fails the test.
    `options` are those of Communicator.from_store; `per_rank(rank)` gives further ones.
    """
    shared = MemoryStore(timeout) if store is None else store
    results: list[Any] = [None] * world_size
    failures: dict[int, str] = {}
    options.setdefault("measure", False)

    def rank_main(rank: int) -> None:
        own = per_rank(rank) if per_rank else {}
        try:
            comm = Communicator.from_store(
                shared, rank, world_size, timeout=timeout, **{**options, **own}
            )
            try:
                results[rank] = body(comm)
            finally:
                comm.close()
        except BaseException as error:  # the test thread judges it
            results[rank] = error
            failures[rank] = traceback.format_exc()

    threads = [
        threading.Thread(target=rank_main, args=(r,), daemon=True) for r in range(world_size)
    ]
    for thread in threads:
        thread.start()
    for rank, thread in enumerate(threads):
        thread.join(timeout * 3)
        if thread.is_alive():
            raise RankFailed(f"rank {rank} hangs; others: {failures}")
    if failures and not errors:
        raise RankFailed("\n".join(f"rank {r}: {text}" for r, text in sorted(failures.items())))
    return results


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a rank that is a process ended. Times are of the monotonic clock, in seconds."""

    rank: int
    result: Any = None  # through JSON
    error: str = ""  # the exception's type; "" if there was none, "exit" if it died silently
    text: str = ""
    culprit: int = -1  # of a PeerError
    at: float = 0.0


class Processes:
    """Ranks as processes of their own, each in a session of its own, started by `processes`.

    Sentences pass through files: a rank says `tell("word")`, the test `wait_for("word")`; the test
    says `tell("word")`, a rank `hear("word")`.
    """

    def __init__(self, folder: Path, popens: LocalProcesses) -> None:
        self._folder = folder
        self.popens = popens
        self.pids = [popen.pid for popen in popens]

    def kill(self, rank: int, number: int = signal.SIGKILL) -> float:
        """Send a signal to the rank alone, not to its children; return when."""
        at = time.monotonic()
        os.kill(self.pids[rank], number)
        return at

    def tell(self, word: str) -> None:
        (self._folder / f"all-{word}").touch()

    def wait_for(self, word: str, ranks: list[int] | None = None, timeout: float = TIMEOUT) -> None:
        """Wait until these ranks (default: all) have said the word."""
        for rank in range(len(self.popens)) if ranks is None else ranks:
            said = self._folder / f"{rank}-{word}"
            self._await(rank, said.exists, timeout, f"does not say {word!r}")

    def join(self, ranks: list[int] | None = None, timeout: float = TIMEOUT) -> list[Outcome]:
        """Wait until these ranks (default: all) have ended; their outcomes."""
        ranks = list(range(len(self.popens))) if ranks is None else ranks
        deadline = time.monotonic() + timeout
        for rank in ranks:
            left = max(0.1, deadline - time.monotonic())
            self._await(rank, lambda: False, left, "does not end", ends=True)
        return [self.outcome(rank) for rank in ranks]

    def _await(
        self,
        rank: int,
        condition: Callable[[], bool],
        timeout: float,
        what: str,
        ends: bool = False,
    ) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if self.popens[rank].poll() is not None:
                if ends or condition():
                    return
                raise RankFailed(f"rank {rank} {what}, it has ended: {self.outcome(rank)}")
            if time.monotonic() > deadline:
                raise RankFailed(f"rank {rank} {what} in {timeout:g} s: {self._output(rank)}")
            time.sleep(0.005)

    def outcome(self, rank: int) -> Outcome:
        file = self._folder / f"{rank}-outcome"
        if file.exists():
            return Outcome(**json.loads(file.read_text()))
        code = self.popens[rank].poll()
        return Outcome(rank=rank, error="exit", text=f"status {code}: {self._output(rank)}")

    def _output(self, rank: int) -> str:
        return (self._folder / f"{rank}-output").read_text(errors="replace")[-2000:]


@contextmanager
def processes(
    world_size: int,
    body: Callable[..., Any],
    folder: Path,
    *args: Any,
    connect: bool = True,
    close: bool = True,
    env: Mapping[str, str] | None = None,
    helpers: tuple[Callable[..., Any], ...] = (),
    before: Callable[[int], list[str]] = lambda _rank: [],
    **options: Any,
) -> Iterator[Processes]:
    """Start `body(comm, *args)` in a process per rank, over a FileStore in `folder`.

    body: a function whose source is sent: it may use its arguments and what `_namespace` offers.
    args: anything that JSON can carry.
    connect: False: body gets a `Member` in place of a communicator, and connects itself.
    close: False: the communicator is left open at the end.
    helpers: functions that body uses; their source is sent with it.
    before: the words of a command that starts the rank's own, such as `ip netns exec HOST`.
    options: of Communicator.from_store.
    """
    folder.mkdir(exist_ok=True)
    options.setdefault("measure", False)
    options.setdefault("timeout", TIMEOUT)
    body_text = "\n".join(textwrap.dedent(inspect.getsource(f)) for f in (*helpers, body))
    with LocalProcesses() as popens:
        for rank in range(world_size):
            spec = {
                "folder": str(folder),
                "rank": rank,
                "world_size": world_size,
                "body": body_text,
                "name": body.__name__,
                "args": args,
                "connect": connect,
                "close": close,
                "options": options,
            }
            _start(popens, rank, folder, spec, env or {}, before(rank))
        yield Processes(folder, popens)


def run_processes(
    world_size: int,
    body: Callable[..., Any],
    folder: Path,
    *args: Any,
    timeout: float = TIMEOUT,
    errors: bool = False,
    **options: Any,
) -> list[Outcome]:
    """Run `processes` to their end. Without `errors`, any rank's error fails the test."""
    with processes(world_size, body, folder, *args, **options) as world:
        outcomes = world.join(timeout=timeout)
    failures = [outcome for outcome in outcomes if outcome.error]
    if failures and not errors:
        raise RankFailed("\n".join(map(str, failures)))
    return outcomes


def _start(
    popens: LocalProcesses,
    rank: int,
    folder: Path,
    spec: dict[str, Any],
    env: Mapping[str, str],
    before: list[str],
) -> None:
    here = Path(__file__).resolve().parent
    path = os.pathsep.join([str(here), *sys.path])
    with (folder / f"{rank}-output").open("wb") as output:
        popens.start(
            [*before, sys.executable, "-c", "import worlds; worlds._child_main()"],
            {**os.environ, "PYTHONPATH": path, **env, "WORLDS_SPEC": json.dumps(spec)},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


# What runs in a rank's process.


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A rank that has not connected yet."""

    rank: int
    world_size: int
    store: Store
    options: dict[str, Any]

    def connect(self, **options: Any) -> Communicator:
        return Communicator.from_store(
            self.store, self.rank, self.world_size, **{**self.options, **options}
        )


def tell(word: str) -> None:
    """In a rank's process: say a word to the test."""
    spec = _spec()
    Path(spec["folder"], f"{spec['rank']}-{word}").touch()


def hear(word: str) -> None:
    """In a rank's process: wait until the test says the word."""
    spec = _spec()
    deadline = time.monotonic() + TIMEOUT
    while not Path(spec["folder"], f"all-{word}").exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the test does not say {word!r} within {TIMEOUT:g} s")
        time.sleep(0.002)


def _spec() -> dict[str, Any]:
    return json.loads(os.environ["WORLDS_SPEC"])


def _namespace() -> dict[str, Any]:
    import contextlib
    import resource
    import socket

    import numpy as np

    import allreduce
    from allreduce import _C, errors

    return {
        "_C": _C,
        "allreduce": allreduce,
        "contextlib": contextlib,
        "errors": errors,
        "hear": hear,
        "np": np,
        "os": os,
        "resource": resource,
        "signal": signal,
        "socket": socket,
        "subprocess": subprocess,
        "sys": sys,
        "tell": tell,
        "threading": threading,
        "time": time,
    }


def _child_main() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if the test's shell says so
    spec = _spec()
    rank = spec["rank"]
    member = Member(
        rank=rank,
        world_size=spec["world_size"],
        store=FileStore(Path(spec["folder"], "store"), TIMEOUT),
        options=spec["options"],
    )
    names = _namespace()
    exec(compile(spec["body"], spec["name"], "exec"), names)  # ours, from the test's own file
    outcome: dict[str, Any] = {"rank": rank}
    comm = None
    try:
        first: Any = member
        if spec["connect"]:
            first = comm = member.connect()
        outcome["result"] = names[spec["name"]](first, *spec["args"])
    except BaseException as error:
        outcome.update(error=type(error).__name__, text=str(error))
        outcome["culprit"] = getattr(error, "rank", -1)
        traceback.print_exc()
    outcome["at"] = time.monotonic()
    aside = Path(spec["folder"], f"{rank}-outcome-new")
    aside.write_text(json.dumps(outcome))
    aside.replace(Path(spec["folder"], f"{rank}-outcome"))
    if comm is not None and spec["close"]:
        comm.close()
