"""Every algorithm of ours over TCP, what `algo="auto"` takes, and a ring written by hand."""

from __future__ import annotations

import pytest

from allreduce import _C
from benchmarks import cells
from benchmarks.casts import Casts
from benchmarks.cells import Cell
from benchmarks.conftest import Report, is_smoke
from benchmarks.layouts import Layout
from benchmarks.sizes import ALGORITHMS, pairs

pytestmark = [pytest.mark.timeout(118), pytest.mark.benchmark(timer=cells.clock)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = pairs(ALGORITHMS, smoke=is_smoke(metafunc.config))
    metafunc.parametrize(("layout", "nbytes"), chosen, ids=str)


def test_algorithms(layout: Layout, nbytes: int, casts: Casts, benchmark, report: Report) -> None:
    cast = casts.of(layout)
    cell = Cell("algorithms", layout, nbytes, auto=cast.explain(nbytes))
    report.cells.append(cell)
    names = [f"core:{name}" for name in _C.algorithms(_C.Collective.allreduce)]
    cells.measure(cell, cast, ("core", *names, "ring"), benchmark)
