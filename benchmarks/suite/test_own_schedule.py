"""A schedule of one's own beside ours, between hosts in a ring without a switch."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest

from benchmarks.conftest import Report, is_smoke
from benchmarks.networks import emulated, namespaces

_HOSTS, _MBIT, _BYTES, _ROUNDS = 6, 500, 8 << 20, 9
_HEADER = (
    f"allreduce of {_BYTES >> 20} MiB between {_HOSTS} hosts in a ring of cables of "
    f"{_MBIT} Mbit/s (EMULATED): ms a call"
)
_DEADLINE = 120.0

pytestmark = pytest.mark.timeout(_DEADLINE + 10)


def test_own_schedule(
    tmp_path: Path, benchmark, report: Report, pytestconfig: pytest.Config
) -> None:
    """Compare them, and both with what the cables take."""
    if reason := namespaces.why_not():
        pytest.skip(reason)
    rounds = 1 if is_smoke(pytestconfig) else _ROUNDS
    numbers = (_HOSTS, _MBIT, _BYTES, rounds)
    found: dict[str, Any] = {}

    def run() -> None:
        found.update(emulated.run("ring_of_hosts", tmp_path, numbers, _DEADLINE, emulated.RENO))

    benchmark.pedantic(run, rounds=1)
    one_way = 2 * (_HOSTS - 1) / _HOSTS * _BYTES * 8 / (_MBIT * 1e6)
    report.row(_HEADER, f"{'the cables, one way':<24}{one_way * 1e3:>10.1f}")
    report.row(_HEADER, f"{'the cables, both ways':<24}{one_way / 2 * 1e3:>10.1f}")
    for name, seconds in found.items():
        report.row(_HEADER, f"{name:<24}{statistics.median(seconds) * 1e3:>10.1f}")
