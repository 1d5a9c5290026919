"""What the checksums of TCP cost: a call beside itself, checksums apart."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from benchmarks.conftest import Report, is_smoke
from benchmarks.networks import emulated, namespaces

_ROUNDS, _CALLS = 25, 4  # a turn of each group; calls of a turn
_SIZES = {"1 KiB": (1 << 10, 100), "64 KiB": (64 << 10, 20), "16 MiB": (16 << 20, 1)}
_LINKS = {"loopback": 0, "10 Gbit/s": 10_000, "1 Gbit/s": 1000}  # between the ranks
_HEADER = "allreduce of float32 over TCP: us a call, with, without     median of the ratios"
_DEADLINE = 300.0

pytestmark = pytest.mark.timeout(_DEADLINE + 10)


@pytest.mark.parametrize("size", _SIZES)
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("link", _LINKS)
def test_checksum(
    link: str,
    ranks: int,
    size: str,
    tmp_path: Path,
    benchmark,
    report: Report,
    pytestconfig: pytest.Config,
) -> None:
    """Compare a call with itself, checksums apart."""
    mbit = _LINKS[link]
    if mbit and (reason := namespaces.why_not()):
        pytest.skip(reason)
    nbytes, factor = _SIZES[size]
    rounds = 1 if is_smoke(pytestconfig) else _ROUNDS
    numbers = (ranks, mbit, nbytes, rounds, _CALLS * factor)
    found: list[list[float]] = []

    def run() -> None:
        congestion = emulated.RENO if mbit else {}  # else as it comes
        found.extend(emulated.run("checksums", tmp_path, numbers, _DEADLINE, congestion))

    benchmark.pedantic(run, rounds=1)
    with_, without = found
    ratio = statistics.median(a / b for a, b in zip(with_, without, strict=True))
    pair = f"{statistics.median(with_) * 1e6:>12.1f}{statistics.median(without) * 1e6:>12.1f}"
    report.row(_HEADER, f"{f'{link}, {ranks} ranks, {size}':<36}{pair}{ratio:>16.3f}")
