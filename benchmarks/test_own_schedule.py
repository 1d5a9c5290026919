"""A schedule of one's own beside ours, between hosts in a ring without a switch."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import namespaces
from benchmarks.conftest import Report, is_smoke

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
    words = [str(tmp_path), str(_HOSTS), str(_MBIT), str(_BYTES), str(rounds)]
    outputs: list[str] = []

    def run() -> None:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.ring_of_hosts", *words],
            stdout=subprocess.PIPE,
            text=True,
            timeout=_DEADLINE,
            check=True,
            env=os.environ | {"ALLREDUCE_TCP_CONGESTION": "reno"},
        )
        outputs.append(done.stdout)

    benchmark.pedantic(run, rounds=1)
    one_way = 2 * (_HOSTS - 1) / _HOSTS * _BYTES * 8 / (_MBIT * 1e6)
    report.row(_HEADER, f"{'the cables, one way':<24}{one_way * 1e3:>10.1f}")
    report.row(_HEADER, f"{'the cables, both ways':<24}{one_way / 2 * 1e3:>10.1f}")
    for name, seconds in json.loads(outputs[0]).items():
        report.row(_HEADER, f"{name:<24}{statistics.median(seconds) * 1e3:>10.1f}")
