"""What it gains that each collective goes node by node: 2 nodes of 4 ranks, slow links and fast."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest

from benchmarks.conftest import Report, is_smoke
from benchmarks.networks import by_node, emulated, namespaces

_HOSTS, _EACH, _ROUNDS = 2, 4, 9
_HEADER = (
    "2 nodes of 4 ranks: us a call by node, between all ranks     median of the ratios"
    "     bytes on the slowest link take"
)
_DEADLINE = 300.0

pytestmark = pytest.mark.timeout(_DEADLINE + 10)


def least_crossing(collective: str) -> float:
    """What has to go from one node to the other, in buffers."""
    if collective == "alltoall":
        return _EACH * 0.5
    return 1.0 if collective in ("broadcast", "reduce") else 0.5


@pytest.mark.parametrize("mbit", [1000, 0])
def test_by_node(
    mbit: int, tmp_path: Path, benchmark, report: Report, pytestconfig: pytest.Config
) -> None:
    """Compare the two ways, collective by collective."""
    if mbit and (reason := namespaces.why_not()):
        pytest.skip(reason)
    rounds = 1 if is_smoke(pytestconfig) else _ROUNDS
    numbers = (_HOSTS, _EACH, mbit, rounds)
    found: dict[str, Any] = {}

    def run() -> None:
        found.update(emulated.run("by_node", tmp_path, numbers, _DEADLINE, emulated.RENO))

    benchmark.pedantic(run, rounds=1)
    where = f"{mbit} Mbit/s" if mbit else "loopback"
    for key, (with_, without) in found.items():
        name, nbytes = key.split()
        ratio = statistics.median(b / a for a, b in zip(with_, without, strict=True))
        pair = f"{statistics.median(with_) * 1e6:>12.0f}{statistics.median(without) * 1e6:>12.0f}"
        limit = ""
        if mbit:
            seconds = least_crossing(name) * int(nbytes) * 8 / (mbit * 1e6)
            limit = f"{seconds * 1e6:>16.0f}"
        label = f"{name}, {int(nbytes) >> 10} KiB, {where}"
        report.row(_HEADER, f"{label:<40}{pair}{ratio:>12.2f}{limit}")
    assert len(found) == sum(len(by_node.sizes_of(name)) for name in by_node.COLLECTIVES)
