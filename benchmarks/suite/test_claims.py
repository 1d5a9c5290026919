"""The paper's claim at the level of messages: halving/doubling against the ring.

"On 32 servers, using halving/doubling led to a speedup of 3x over the ring" (section 4). Both send
the same bytes; halving/doubling needs 2 lg p messages in a row, the ring 2 (p-1). So the ratio of
their times is (p-1) / lg p for the smallest buffers (6.2 at 32), and 1 for the largest.

SIMULATED: the paper's fabric. docs/claims.md says what it shows; test_emulated_networks.py has real
ranks over TCP.
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.conftest import Report
from benchmarks.networks import paper
from benchmarks.report.tables import size_name

_KIB, _MIB = 1 << 10, 1 << 20
_SIZES = (_KIB, 16 * _KIB, 64 * _KIB, 256 * _KIB, _MIB, 4 * _MIB, 16 * _MIB)
_HALVING, _RING = "halving_doubling", "ring"

_BY_SIZE = (
    f"SIMULATED: {paper.GIGABITS} Gbit/s Ethernet, a float32 buffer of one size: ring/h-d\n"
    "servers  alpha us" + "".join(f"{size_name(nbytes):>9}" for nbytes in (*_SIZES, 64 * _MIB))
)
_MODEL = (
    f"SIMULATED: gradients of ResNet-50, {paper.SERVERS} servers, {paper.GIGABITS} Gbit/s"
    " Ethernet: ms of all allreduces, ring and halving/doubling, and their ratio\n"
    + f"{'messages':<38}"
    + "".join(f"{f'alpha {alpha} us':>26}" for alpha in paper.ALPHAS_US)
)


@pytest.mark.parametrize(
    ("servers", "alpha"),
    [
        *((servers, 20) for servers in (4, 8, 16)),
        *((paper.SERVERS, alpha) for alpha in paper.ALPHAS_US),
    ],
)
def test_one_buffer_on_the_paper_s_fabric(
    servers: int, alpha: int, benchmark: Any, report: Report
) -> None:
    """Simulate both for each size."""
    sizes = (*_SIZES, 64 * _MIB)

    def ratios() -> list[float]:
        times = [
            [paper.seconds(name, [n // 4], alpha, servers) for name in (_RING, _HALVING)]
            for n in sizes
        ]
        return [ring / halving for ring, halving in times]

    found = benchmark.pedantic(ratios, rounds=1)
    row = "".join(f"{ratio:>9.2f}" for ratio in found)
    report.row(_BY_SIZE, f"{servers:>7} {alpha:>9}{row}")


def _plans() -> dict[str, tuple[list[int], int]]:
    """Return (elements of each allreduce, how many at once) by name."""
    tensors = paper.gradients()
    plans = {f"{len(tensors)} tensors, {c} at once": (tensors, c) for c in (1, 4, 16)}
    for megabytes in (4, 25):
        filled = paper.buckets(tensors, megabytes * 10**6)
        plans[f"{len(filled)} buckets of up to {megabytes} MB, 1 at once"] = filled, 1
    plans[f"one buffer of {sum(tensors) * 4 / 1e6:.0f} MB"] = [sum(tensors)], 1
    return plans


@pytest.mark.parametrize("plan", _plans())
def test_gradients_on_the_paper_s_fabric(plan: str, benchmark: Any, report: Report) -> None:
    """Simulate both for each alpha."""
    counts, at_once = _plans()[plan]

    def times() -> list[list[float]]:
        return [
            [paper.seconds(name, counts, alpha, at_once=at_once) for name in (_RING, _HALVING)]
            for alpha in paper.ALPHAS_US
        ]

    found = benchmark.pedantic(times, rounds=1)
    row = "".join(
        f"{f'{ring * 1e3:.1f} {halving * 1e3:.1f}  {ring / halving:.2f}':>26}"
        for ring, halving in found
    )
    report.row(_MODEL, f"{plan:<38}{row}")
