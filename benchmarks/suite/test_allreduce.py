"""hier, the core and every peer by layout, size, dtype and op: `dist.all_reduce` and its like.

pytest-benchmark's own table shows seconds per call of hier; the tables at the end show them all.
"""

from __future__ import annotations

import pytest

from benchmarks.conftest import Report, is_smoke
from benchmarks.harness import measurements
from benchmarks.harness.floors import Floors
from benchmarks.harness.layout_worlds import WorldsByLayout
from benchmarks.harness.layouts import AVERAGING, Layout
from benchmarks.harness.measurements import Measurement
from benchmarks.harness.sizes import AVERAGES, DTYPES, SWEEP, pairs

pytestmark = [pytest.mark.timeout(118), pytest.mark.benchmark(timer=measurements.clock)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """All of a layout in a row: to start its players takes longer than a measurement."""
    smoke = is_smoke(metafunc.config)
    found = [
        (layout, nbytes, dtype, op)
        for sizes, dtypes, op in (
            (SWEEP, ("float32",), "sum"),
            (AVERAGES, ("float32",), "avg"),
            (DTYPES, ("bfloat16", "float16"), "sum"),
        )
        for layout, nbytes in pairs(sizes, smoke=smoke)
        for dtype in dtypes
    ]
    layouts = list(dict.fromkeys(layout for layout, *_ in found))
    found.sort(key=lambda measurement: layouts.index(measurement[0]))
    metafunc.parametrize(("layout", "nbytes", "dtype", "op"), found, ids=str)


def test_allreduce(
    layout: Layout,
    nbytes: int,
    dtype: str,
    op: str,
    worlds_by_layout: WorldsByLayout,
    floors: Floors,
    benchmark,
    report: Report,
) -> None:
    """Measure all players; at 16 bits, which MPI does not have, hier and Gloo.

    MPI has no mean either: its driver scales the sum, which is in the time.
    """
    if dtype != "float32":
        measurement = Measurement("dtypes", layout, nbytes, dtype)
        players: tuple[str, ...] = ("hier", "gloo", "gloo-cubic")
    elif op == "avg":
        measurement = Measurement("averages", layout, nbytes, op=op)
        players = tuple(name for name in layout.players if name in AVERAGING)
    else:
        measurement = Measurement("sweep", layout, nbytes, limits=floors.limits(layout, nbytes))
        players = layout.players
    report.measurements.append(measurement)
    measurements.measure(measurement, worlds_by_layout.of(layout), players, benchmark)
