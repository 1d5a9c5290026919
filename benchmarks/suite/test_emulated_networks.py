"""Halving/doubling, the ring and `auto` on emulated networks with a delay, beside bare loops.

EMULATED: real ranks over TCP between the hosts of `python -m allreduce.emulate`. The short form has
8 hosts. docs/claims.md has the tables of 32 hosts, and the commands that made them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from benchmarks.conftest import Report, is_smoke
from benchmarks.networks import namespaces
from benchmarks.report.tables import size_name

_KIB, _MIB = 1 << 10, 1 << 20
_SIZES = (16 * _KIB, 256 * _KIB, _MIB, 4 * _MIB)
_HOSTS, _DILATION = 8, 200
_DEADLINE = 110
# What the paper had, and two others: rate, delay one way.
_NETWORKS = {"paper": ("50Gbit", "80us"), "slow": ("25Gbit", "200us"), "fast": ("100Gbit", "20us")}
_HEAD = (
    f"EMULATED: hosts, {_DILATION} times slower; ms on the network, medians: "
    "halving/doubling, ring, auto; bare halving/doubling, bare ring\n"
    "hosts  network               size"
)


@pytest.mark.timeout(118)
@pytest.mark.parametrize("name", _NETWORKS)
def test_allreduces_on_a_network_with_a_delay(
    name: str, benchmark: Any, report: Report, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Measure all by turns, in one run of the emulator."""
    hosts = 2 if is_smoke(request.config) else _HOSTS
    rate, delay = _NETWORKS[name]
    found = tmp_path / "found.json"
    words = ["--hosts", str(hosts), "--rate", rate, "--delay", delay]
    words += ["--dilation", str(_DILATION), "--", sys.executable, "-m", "benchmarks.networks.delay"]
    words += ["--sizes", ",".join(map(str, _SIZES)), "--rounds", "3", "--json", str(found)]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "allreduce.emulate", *words],
            capture_output=True,
            text=True,
            timeout=_DEADLINE,
            check=False,
        )

    if reason := namespaces.why_no_emulation():
        report.row(_HEAD, f"absent: {reason}")
        pytest.skip(reason)
    done = benchmark.pedantic(run, rounds=1)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(found.read_text())["rows"]
    seconds = {(player, nbytes): median(times) for player, nbytes, *times in rows}
    players = dict.fromkeys(player for player, _ in seconds)
    for nbytes in _SIZES:
        times = "".join(f"{1e3 * seconds[player, nbytes] / _DILATION:>9.3f}" for player in players)
        report.row(_HEAD, f"{hosts:>5} {rate:>8} {delay:>6} {size_name(nbytes):>10}{times}")
