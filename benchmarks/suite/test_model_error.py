"""The cost model and the simulator against measured times: how far the predictions are off.

Two sets of figures predict. "init": alpha, beta, gamma as a communicator measures them when it
starts. "ring": alpha and beta fitted to the ring at two sizes, which are not predicted. So no
figure comes from what it predicts. The times are undisturbed ones, as the figures are.
docs/model_error.md keeps the tables of a run, and says why they are as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from allreduce.schedules import by_name
from allreduce.schedules.simulate import Link, Network, simulate
from allreduce.tuning import cost
from benchmarks.conftest import Report, is_smoke
from benchmarks.harness import measurements
from benchmarks.harness.emulated_worlds import EmulatedWorld, EmulatedWorlds, Setup, undisturbed
from benchmarks.harness.measurements import Measurement
from benchmarks.peers import Absent
from benchmarks.report.tables import microseconds, size_name

_KIB, _MIB = 1 << 10, 1 << 20
_SETUPS = (
    Setup(2, 0, "cubic"),
    Setup(4, 0, "cubic"),
    Setup(4, 100),
    Setup(4, 1000),
    Setup(8, 300),
    Setup(8, 1000),
)
_SIZES = (4 * _KIB, 64 * _KIB, 512 * _KIB, 2 * _MIB)
_ALGORITHMS = ("ring", "halving_doubling", "recursive_doubling", "circulant")
_SMALL, _LARGE = _KIB, 4 * _MIB  # of the ring, that figures are fitted to
_SECONDS = 0.2  # that an algorithm gets for a size
_SEGMENT = (256 << 10) // 4  # elements; the communicator's default

_TIMES = (
    "{tier} us a call, p10, and by how many percent the cost model/the simulator are off, figures"
    " of init ({congestion})\n"
    f"{'link':>10} ranks  {'algorithm':<18}" + "".join(f"{size_name(n):>22}" for n in _SIZES)
)
_MEDIANS = (
    "Errors in percent without sign, median over sizes; alpha us, 1/beta MB/s\n"
    f"{'link':>10} ranks  {'algorithm':<18}   figures of    alpha    1/beta   cost model"
    "   simulator"
)


def fitted(world: EmulatedWorld) -> cost.Link:
    """Return alpha and beta of the ring; gamma as the communicator has measured it."""
    ranks, gamma = world.setup.ranks, world.link().gamma
    small, large = (world.seconds("ring", n, calls) for n, calls in ((_SMALL, 200), (_LARGE, 3)))
    share = (ranks - 1) / ranks  # of the buffer, sent twice and reduced once
    beta = ((large - small) / (_LARGE - _SMALL) / share - gamma) / 2
    alpha = (small - _SMALL * share * (2 * beta + gamma)) / (2 * (ranks - 1))
    return cost.Link(alpha, beta, gamma)


def simulated(algorithm: str, ranks: int, nbytes: int, link: cost.Link) -> float:
    """Return the simulator's seconds for the steps that the engine would run."""
    wire = Link(alpha=link.alpha, beta=link.beta)
    network = Network(local=wire, inter=wire, gamma=link.gamma)
    schedule = by_name(algorithm, ranks)
    return simulate(schedule, nbytes // 4, network=network, segment=_SEGMENT).seconds


@dataclass
class Errors:
    """Of one setup: times and figures, and what follows from them."""

    setup: Setup
    congestion: str
    figures: dict[str, cost.Link]
    ranks_per_core: float  # that figures of init assume
    seconds: dict[tuple[str, int], float] = field(default_factory=dict)  # by algorithm and bytes

    def percent(self, algorithm: str, nbytes: int, figures: str) -> tuple[float, float]:
        """Return by how much the cost model and the simulator are off; positive: too long.

        Figures of init are those of a rank that has a core to itself: they are multiplied by
        the ranks of a core. The simulator knows none, so every link is so much slower for it.
        """
        ranks, link = self.setup.ranks, self.figures[figures]
        sharing = max(1.0, self.ranks_per_core) if figures == "init" else 1.0
        slower = cost.Link(link.alpha * sharing, link.beta * sharing, link.gamma * sharing)
        truth = self.seconds[algorithm, nbytes]
        model = cost.predict(algorithm, ranks, nbytes, link, ranks_per_core=sharing)
        return tuple(
            100 * (t / truth - 1) for t in (model, simulated(algorithm, ranks, nbytes, slower))
        )

    def write(self, report: Report) -> None:
        """Add the rows of all algorithms."""
        sizes = sorted({nbytes for _, nbytes in self.seconds})
        for name in _ALGORITHMS:
            head = f"{self.setup.network:>10} {self.setup.ranks:>5}  {name:<18}"
            texts = []
            for n in sizes:
                model, simulation = self.percent(name, n, "init")
                texts.append(
                    f"{microseconds(self.seconds[name, n])} {model:+.0f}/{simulation:+.0f}"
                )
            header = _TIMES.format(tier=self.setup.tier, congestion=self.congestion)
            report.row(header, head + "".join(f"{text:>22}" for text in texts))
            for figures, link in self.figures.items():
                both = np.median(np.abs([self.percent(name, n, figures) for n in sizes]), axis=0)
                report.row(
                    _MEDIANS,
                    f"{head}   {figures:<10} {link.alpha * 1e6:>8.1f} {1e-6 / link.beta:>9.0f}"
                    f" {both[0]:>12.0f} {both[1]:>11.0f}",
                )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    smoke = is_smoke(metafunc.config)
    setups = _SETUPS[:1] if smoke else _SETUPS
    metafunc.parametrize("errors", setups, ids=str, indirect=True, scope="module")
    metafunc.parametrize("nbytes", _SIZES[:1] if smoke else _SIZES, ids=size_name)


@pytest.fixture(scope="module")
def errors(
    request: pytest.FixtureRequest, emulated_worlds: EmulatedWorlds, report: Report
) -> Iterator[Errors]:
    """Yield what a setup's tests fill; write it when they have ended."""
    setup = request.param
    try:
        world = emulated_worlds.of(setup)
    except Absent as reason:
        report.row(_MEDIANS, f"{setup.network:>10} {setup.ranks:>5}  absent: {reason}")
        pytest.skip(str(reason))
    figures = {"init": world.link(), "ring": fitted(world)}
    found = Errors(setup, world.congestion, figures, world.ranks_per_core())
    yield found
    found.write(report)


@pytest.mark.timeout(118)
@pytest.mark.benchmark(timer=measurements.clock)
def test_predictions(
    errors: Errors, nbytes: int, emulated_worlds: EmulatedWorlds, benchmark: Any
) -> None:
    """Measure all algorithms, turn by turn."""
    measurement = Measurement("model", errors.setup.layout, nbytes)
    measurements.measure(
        measurement, emulated_worlds.of(errors.setup), _ALGORITHMS, benchmark, _SECONDS
    )
    for name in _ALGORITHMS:
        errors.seconds[name, nbytes] = undisturbed(measurement.rounds[name])
