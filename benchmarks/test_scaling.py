"""Scaling efficiency of a training step on one node, and the communication that it exposes.

Ranks beyond the cores share them, so the limit is not `ranks` times the images of one rank: it is
the same step without communication, in the same run. Efficiency is against that. Exposed is what a
step takes longer than without communication; where all cores compute, it cannot be less than the
CPU time that the communication takes.
"""

from __future__ import annotations

import statistics
from typing import Any

import pytest

from benchmarks.conftest import Report
from benchmarks.training import WAYS, run_job

MODEL, IMAGES, ROUNDS = "resnet50", 8, 5
pytestmark = pytest.mark.timeout(450)
_HEADER = f"{MODEL}, {IMAGES} images a rank; ranks   way   images/s   efficiency   exposed ms"


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_training_step(ranks: int, benchmark, report: Report, pytestconfig: Any) -> None:
    """Time the step of each way in turn; report medians of pairs."""
    quick = pytestconfig.getoption("benchmark_disable")
    job = {"model": "resnet18" if quick else MODEL, "images": IMAGES, "bucket_mb": 25}
    times = benchmark.pedantic(
        run_job, args=(ranks,), kwargs={**job, "rounds": 1 if quick else ROUNDS}
    )
    free = times["none"]
    for way in WAYS:
        seconds = statistics.median(times[way])
        # Pairs: the machine changes from round to round.
        exposed = statistics.median(a - b for a, b in zip(times[way], free, strict=True))
        efficiency = statistics.median(b / a for a, b in zip(times[way], free, strict=True))
        benchmark.extra_info[f"{way}_images_per_s"] = ranks * IMAGES / seconds
        benchmark.extra_info[f"{way}_exposed_ms"] = exposed * 1e3
        report.row(
            _HEADER,
            f"{ranks:>5}   {way:<14} {ranks * IMAGES / seconds:>8.1f} {efficiency:>10.1%}"
            f" {exposed * 1e3:>10.1f}",
        )
