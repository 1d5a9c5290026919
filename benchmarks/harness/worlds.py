"""Worlds of processes for benchmarks: ranks of one peer, or of several, that obey one protocol.

A world lives as long as its layout is measured, because starting takes longer than measuring. Its
ranks sleep in read() while it is another world's turn. When this process dies, the pipes close and
every rank ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from allreduce.commands.local_processes import LocalProcesses
from benchmarks import peers
from benchmarks.harness.layouts import Layout
from benchmarks.harness.system_calls import processes_below
from benchmarks.peers import mpi
from benchmarks.peers.settings import Player

_ROOT = Path(__file__).resolve().parents[2]
_TIMEOUT = 45.0  # seconds for an answer; the first one waits for the start
_END = 5.0


@dataclass(frozen=True, slots=True)
class Round:
    """One player's turn: calls in a row."""

    seconds: np.ndarray[Any, Any]  # of each call, the mean over ranks
    cpu_seconds: float  # of all ranks, for all these calls
    wrong: int  # elements; 0 where nothing was checked


class World:
    """`size` ranks, started by `commands` (which get the folder of the pipes)."""

    def __init__(
        self,
        size: int,
        commands: Callable[[Path], list[list[str]]],
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.size = size
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        for name in (f"{rank}.{end}" for rank in range(size) for end in ("in", "out")):
            os.mkfifo(folder / name)
        # For reading and writing: opening does not wait, and a rank that ends gives no end of file.
        self._out = [os.open(folder / f"{r}.out", os.O_RDWR | os.O_NONBLOCK) for r in range(size)]
        self._in = [os.open(folder / f"{r}.in", os.O_RDWR) for r in range(size)]
        self._processes = LocalProcesses()
        own = os.environ | dict(environ or {})
        with (folder / "log").open("w") as log:
            for command in commands(folder):
                self._processes.start(command, own, cwd=_ROOT, stdout=log, stderr=log)

    def ask(self, line: str) -> list[bytes]:
        """Return every rank's answer to a line."""
        for pipe in self._in:
            os.write(pipe, line.encode() + b"\n")
        deadline = time.monotonic() + _TIMEOUT
        return [self._answer(rank, deadline, line) for rank in range(self.size)]

    def measure(
        self,
        player: str,
        nbytes: int,
        dtype: str,
        calls: int,
        *,
        op: str = "sum",
        warm_up: int = 0,
        check: bool = False,
    ) -> Round:
        """Measure `calls` allreduces in a row.

        op: "sum" or "avg".
        check: before all others, one whose sums are checked.
        warm_up: calls before those that count. The kernel needs some milliseconds to give ranks
            that it has just woken a core each.
        """
        answers = self.ask(f"measure {player} {nbytes} {dtype} {op} {warm_up} {calls} {int(check)}")
        rows = np.array([np.frombuffer(answer) for answer in answers])
        return Round(rows[:, 2:].mean(axis=0), float(rows[:, 1].sum()), int(rows[:, 0].sum()))

    def processes(self) -> list[int]:
        """Return the ids of all its processes, a launcher's too."""
        return [pid for popen in self._processes for pid in processes_below(popen.pid)]

    def _answer(self, rank: int, deadline: float, line: str) -> bytes:
        (length,) = struct.unpack("@Q", self._read(rank, 8, deadline, line))
        return self._read(rank, length, deadline, line)

    def _read(self, rank: int, nbytes: int, deadline: float, line: str) -> bytes:
        got = b""
        while len(got) < nbytes:
            if select.select([self._out[rank]], [], [], 0.2)[0]:
                got += os.read(self._out[rank], nbytes - len(got))
                continue
            if any(code is not None for code in self._processes.codes()):
                raise peers.Absent(f"ended at {line!r}: {self._log()}")
            if time.monotonic() > deadline:
                raise peers.Absent(f"no answer in {_TIMEOUT:.0f} s to {line!r}: {self._log()}")
        return got

    def _log(self) -> str:
        return (Path(self._folder.name) / "log").read_text()[-400:].strip()

    def close(self) -> None:
        """Close the pipes, and kill what has not ended by itself."""
        for pipe in (*self._in, *self._out):
            os.close(pipe)
        self._processes.wait(_END)
        self._processes.kill()
        self._folder.cleanup()

    def __enter__(self) -> World:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def torch_world(layout: Layout) -> World:
    """Start ranks that have hier and Gloo."""
    environ = {"OMP_NUM_THREADS": "1", "ALLREDUCE_NODES": str(layout.nodes)}
    with contextlib.suppress(peers.Absent):  # only gloo-cubic misses it, and says so
        environ["LD_PRELOAD"] = peers.cubic()["LD_PRELOAD"]
    command = [sys.executable, "-m", "benchmarks.harness.ranks"]
    options = [str(layout.ranks), layout.local]
    return World(layout.ranks, lambda folder: [[*command, str(folder), *options]], environ)


def ring_world(layout: Layout) -> World:
    """Start the ring that is written by hand."""
    program = peers.compiled("ring.c", peers.c_compiler())
    size = layout.ranks
    return World(
        size,
        lambda folder: [[program, str(folder), str(r), str(size)] for r in range(size)],
        peers.cubic(),
    )


def mpi_world(layout: Layout, player: Player) -> World:
    """Start the ranks of an MPI."""
    environ = mpi.environ(player.library, tcp=player.tcp) | dict(player.settings)
    size = layout.ranks
    return World(size, lambda folder: [mpi.command(player.library, size, folder)], environ)
