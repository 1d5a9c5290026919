"""hier, the core and every peer by layout, size and dtype: `dist.all_reduce` and its like.

pytest-benchmark's own table shows seconds per call of hier; the tables at the end show them all.
"""

from __future__ import annotations

import pytest

from benchmarks import cells
from benchmarks.casts import Casts
from benchmarks.cells import Cell
from benchmarks.conftest import Report, is_smoke
from benchmarks.floors import Floors
from benchmarks.layouts import Layout
from benchmarks.sizes import DTYPES, SWEEP, pairs

pytestmark = [pytest.mark.timeout(118), pytest.mark.benchmark(timer=cells.clock)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """All of a layout in a row: to start its players takes longer than to measure a cell."""
    smoke = is_smoke(metafunc.config)
    found = [(layout, nbytes, "float32") for layout, nbytes in pairs(SWEEP, smoke=smoke)]
    found += [
        (layout, nbytes, dtype)
        for layout, nbytes in pairs(DTYPES, smoke=smoke)
        for dtype in ("bfloat16", "float16")
    ]
    layouts = list(dict.fromkeys(layout for layout, _, _ in found))
    found.sort(key=lambda cell: layouts.index(cell[0]))
    metafunc.parametrize(("layout", "nbytes", "dtype"), found, ids=str)


def test_allreduce(
    layout: Layout,
    nbytes: int,
    dtype: str,
    casts: Casts,
    floors: Floors,
    benchmark,
    report: Report,
) -> None:
    """Measure all players at float32; at 16 bits, which MPI does not have, hier and Gloo."""
    if dtype == "float32":
        cell = Cell("sweep", layout, nbytes, dtype, floors.limits(layout, nbytes))
        players = layout.players
    else:
        cell = Cell("dtypes", layout, nbytes, dtype)
        players = ("hier", "gloo", "gloo-cubic")
    report.cells.append(cell)
    cells.measure(cell, casts.of(layout), players, benchmark)
