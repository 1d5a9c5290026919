"""Ranks as processes on the one GPU: started, killed and heard by the process of a section."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from allreduce.commands.local_processes import LocalProcesses
from benchmarks.gpu.place import Place
from benchmarks.gpu.section_processes import ROOT

_TAIL = 500  # characters of a rank's output


class WorldFailed(Exception):
    """A rank raised, died or hung; the text says which and how."""


class World:
    """The processes of one world. A rank says a word by making a file of that name."""

    def __init__(self, folder: Path, processes: LocalProcesses) -> None:
        self._folder = folder
        self._processes = processes

    def kill(self, rank: int) -> float:
        """Kill a rank; return when, by the monotonic clock."""
        at = time.monotonic()
        self._processes[rank].kill()
        return at

    def wait_for(self, word: str, deadline: float) -> None:
        """Wait until every rank has said the word."""
        for rank, process in enumerate(self._processes):
            while not (self._folder / f"{rank}-{word}").exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise WorldFailed(f"rank {rank} does not say {word!r}: {self._last(rank)}")
                time.sleep(0.005)

    def end(self, deadline: float, *, killed: int | None = None) -> list[dict[str, Any]]:
        """Return the outcome of every rank but the killed one."""
        outcomes = []
        for rank, process in enumerate(self._processes):
            if rank == killed:
                continue
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise WorldFailed(f"rank {rank} does not end: {self._last(rank)}") from None
            outcomes.append(self._outcome(rank))
        return outcomes

    def _outcome(self, rank: int) -> dict[str, Any]:
        file = self._folder / f"{rank}-outcome"
        if not file.exists():
            status = self._processes[rank].returncode
            raise WorldFailed(f"rank {rank} ended with status {status}: {self._last(rank)}")
        outcome: dict[str, Any] = json.loads(file.read_text())
        return outcome

    def _last(self, rank: int) -> str:
        text = (self._folder / f"{rank}-output").read_text(errors="replace").strip()
        return " ".join(text.split())[-_TAIL:]


@contextmanager
def world(
    place: Place,
    size: int,
    body: str,
    spec: Mapping[str, Any],
    env: Mapping[str, str] | None = None,
) -> Iterator[World]:
    """Start `size` ranks of a body of ranks.py; none is left behind.

    env: may hold {rank}, which each rank's number takes the place of.
    """
    with tempfile.TemporaryDirectory() as name, LocalProcesses() as processes:
        folder = Path(name)
        full = json.dumps({**spec, "device": place.device, "parent": os.getpid()})
        for rank in range(size):
            own = {key: value.format(rank=rank) for key, value in (env or {}).items()}
            command = [sys.executable, "-m", "benchmarks.gpu.ranks", name, str(rank), str(size)]
            with (folder / f"{rank}-output").open("wb") as output:
                processes.start(
                    [*command, body, full], os.environ | own, cwd=ROOT, stdout=output, stderr=output
                )
        yield World(folder, processes)


def run_world(
    place: Place,
    size: int,
    body: str,
    spec: Mapping[str, Any],
    env: Mapping[str, str] | None = None,
    *,
    seconds: float,
) -> list[dict[str, Any]]:
    """Run a world to its end; the result of each rank. WorldFailed if one raised."""
    deadline = time.monotonic() + seconds
    with world(place, size, body, spec, env) as ranks:
        outcomes = ranks.end(deadline)
    for rank, outcome in enumerate(outcomes):
        if outcome["error"]:
            raise WorldFailed(f"rank {rank}: {outcome['error']}: {outcome['text']}")
    return [outcome["result"] for outcome in outcomes]
