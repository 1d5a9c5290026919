"""What the checksums of TCP cost: the same processes call groups with and without, turn by turn."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from allreduce import Communicator
from allreduce._store import FileStore
from benchmarks.conftest import Report, is_smoke

_ROUNDS, _CALLS = 25, 4  # a turn of each group; calls of a turn
_SIZES = {"1 KiB": (1 << 10, 100), "64 KiB": (64 << 10, 20), "16 MiB": (16 << 20, 1)}
_HEADER = (
    "allreduce of float32 over loopback TCP: us a call, with, without     median of the ratios"
)


def _rank(folder: str, rank: int, ranks: int, nbytes: int, rounds: int, calls: int) -> None:
    groups = [
        Communicator.from_store(
            FileStore(Path(folder, f"store-{on}")),
            rank,
            ranks,
            nodes=ranks,
            checksum=on,
            measure=False,
        )
        for on in (True, False)
    ]
    x = np.zeros(nbytes // 4, np.float32)
    seconds: list[list[float]] = [[], []]
    for turn in range(rounds + 1):
        order = (0, 1) if turn % 2 else (1, 0)
        for i in order:
            groups[i].barrier()
            begin = time.perf_counter()
            for _ in range(calls):
                groups[i].allreduce(x)
            seconds[i].append((time.perf_counter() - begin) / calls)
    if rank == 0:
        Path(folder, "seconds").write_text(json.dumps([one[1:] for one in seconds]))
    for group in groups:
        with contextlib.suppress(Exception):
            group.close()


def measure(folder: Path, ranks: int, nbytes: int, rounds: int, calls: int) -> list[list[float]]:
    """Return the seconds of a call in each round, with and without checksums."""
    spawn = multiprocessing.get_context("spawn")
    folder.mkdir()
    processes = [
        spawn.Process(target=_rank, args=(str(folder), rank, ranks, nbytes, rounds, calls))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
        if process.exitcode != 0:
            sys.exit(f"a rank ended with {process.exitcode}")
    seconds: list[list[float]] = json.loads((folder / "seconds").read_text())
    return seconds


@pytest.mark.parametrize("size", _SIZES)
@pytest.mark.parametrize("ranks", [2, 4])
def test_checksum(
    ranks: int, size: str, tmp_path: Path, benchmark, report: Report, pytestconfig: pytest.Config
) -> None:
    """Compare a call with itself, checksums apart."""
    nbytes, factor = _SIZES[size]
    rounds = 1 if is_smoke(pytestconfig) else _ROUNDS
    found: list[list[float]] = []

    def run() -> None:
        found.extend(measure(tmp_path / "ranks", ranks, nbytes, rounds, _CALLS * factor))

    benchmark.pedantic(run, rounds=1)
    with_, without = found
    ratio = statistics.median(a / b for a, b in zip(with_, without, strict=True))
    pair = f"{statistics.median(with_) * 1e6:>12.1f}{statistics.median(without) * 1e6:>12.1f}"
    report.row(_HEADER, f"{f'{ranks} ranks, {size}':<28}{pair}{ratio:>16.3f}")
