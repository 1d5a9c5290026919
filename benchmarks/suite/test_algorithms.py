"""Every algorithm of ours, what `algo="auto"` takes, and over TCP a ring written by hand."""

from __future__ import annotations

import pytest

from allreduce.tuning.cost import distinct_algorithms
from benchmarks.conftest import Report, is_smoke
from benchmarks.harness import measurements
from benchmarks.harness.layout_worlds import WorldsByLayout
from benchmarks.harness.layouts import Layout
from benchmarks.harness.measurements import Measurement
from benchmarks.harness.sizes import ALGORITHMS, pairs

_SECONDS = 0.2  # that an algorithm gets in a measurement
pytestmark = [pytest.mark.timeout(118), pytest.mark.benchmark(timer=measurements.clock)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = pairs(ALGORITHMS, smoke=is_smoke(metafunc.config))
    metafunc.parametrize(("layout", "nbytes"), chosen, ids=str)


def test_algorithms(
    layout: Layout, nbytes: int, worlds_by_layout: WorldsByLayout, benchmark, report: Report
) -> None:
    worlds = worlds_by_layout.of(layout)
    # Among two ranks, say, most algorithms make the same moves: one stands for all of them.
    stands_for = distinct_algorithms(layout.nodes if layout.local != "none" else layout.ranks)
    measurement = Measurement("algorithms", layout, nbytes, auto=stands_for[worlds.explain(nbytes)])
    report.measurements.append(measurement)
    names = [f"core:{name}" for name in dict.fromkeys(stands_for.values())]
    names += ["core:ring"] if layout.kind == "TCP" and "core:ring" not in names else []
    others = ["ring"] if layout.kind == "TCP" else []
    measurements.measure(measurement, worlds, ("core", *names, *others), benchmark, _SECONDS)
