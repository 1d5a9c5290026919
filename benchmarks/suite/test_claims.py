"""The paper's claim at the level of messages: halving/doubling against the ring.

"On 32 servers, using halving/doubling led to a speedup of 3x over the ring" (section 4). Both send
the same bytes; halving/doubling needs 2 lg p messages in a row, the ring 2 (p-1). So the ratio of
their times is (p-1) / lg p for the smallest buffers (6.2 at 32), and 1 for the largest.

EMULATED: real ranks over TCP between network namespaces whose links have a rate, but no delay.
SIMULATED: the paper's fabric. The two never share a column. docs/claims.md says what they show.
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.conftest import Report, is_smoke
from benchmarks.harness import cells
from benchmarks.harness.cells import Cell
from benchmarks.harness.emulated_worlds import EmulatedWorlds, Setup
from benchmarks.networks import paper
from benchmarks.peers import Absent
from benchmarks.report.tables import microseconds, size_name

_KIB, _MIB = 1 << 10, 1 << 20
_SIZES = (_KIB, 16 * _KIB, 64 * _KIB, 256 * _KIB, _MIB, 4 * _MIB, 16 * _MIB)
_SECONDS = 0.25  # that each of the two gets for a size
_FEW = (_KIB, 64 * _KIB, _MIB, 16 * _MIB)
# Two cores can forward about 20 Gbit/s between namespaces.
_SETUPS = {
    Setup(4, 1000): _FEW,
    Setup(8, 1000): _SIZES,
    Setup(16, 1000): _FEW,
    Setup(32, 500): _SIZES,
}
_HALVING, _RING = "halving_doubling", "ring"

_EMULATED = (
    "EMULATED: hosts in network namespaces, links limited by tbf at both ends, {congestion};"
    " allreduce of float32, us a call, p50\n"
    "hosts       link     size            ring  halving/doubling   ring/h-d   limit (p-1)/lg p"
)
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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "setup" in metafunc.fixturenames:
        smoke = is_smoke(metafunc.config)
        found = [(setup, n) for setup, sizes in _SETUPS.items() for n in sizes]
        metafunc.parametrize(("setup", "nbytes"), found[:2] if smoke else found, ids=str)


@pytest.mark.timeout(118)
@pytest.mark.benchmark(timer=cells.clock)
def test_halving_doubling_beside_ring(
    setup: Setup, nbytes: int, emulated_worlds: EmulatedWorlds, benchmark: Any, report: Report
) -> None:
    """Measure both, turn by turn, between namespaces."""
    try:
        world = emulated_worlds.of(setup)
    except Absent as reason:
        report.row(_EMULATED.format(congestion="absent"), f"absent: {reason}")
        pytest.skip(str(reason))
    cell = Cell("claims", setup.layout, nbytes)
    cells.measure(cell, world, (_HALVING, _RING), benchmark, _SECONDS)
    ranks = setup.ranks
    report.row(
        _EMULATED.format(congestion=world.congestion),
        f"{ranks:>5} {setup.network:>10} {size_name(nbytes):>8}"
        f" {microseconds(cell.p50(_RING)):>15} {microseconds(cell.p50(_HALVING)):>17}"
        f" {cell.ratio(_RING, _HALVING):>10.2f} {(ranks - 1) / (ranks - 1).bit_length():>18.2f}",
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
