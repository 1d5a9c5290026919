"""Scaling efficiency of a training step on one node, and the communication that it exposes.

Ranks beyond the cores share them, so the limit is not `ranks` times the images of one rank: it is
the same step of the same replica without communication, which runs next to it. Efficiency is
against that. Exposed is what a step takes longer than that; where all cores compute, it cannot be
less than the CPU time that the communication takes. Overlap is the part of the communication that
is hidden: 1 - exposed / alone, where alone is the time of the same reductions with nothing else to
compute. It is negative where a step pays more than that, with copies and cold caches. Stock DDP
takes the bucket size that was best for it on Gloo, measured before.
"""

from __future__ import annotations

import itertools
import statistics
from typing import Any

import pytest

from benchmarks.conftest import Report
from benchmarks.harness.training import BUCKETS_MB, Times, run_job

MODEL, IMAGES = "resnet50", 8
_ROUNDS = {1: 3, 2: 9, 4: 5}  # by ranks
_DEFAULT_MB = 25  # of a bucket of stock DDP; one rank alone reduces nothing
pytestmark = pytest.mark.timeout(450)
_HEADER = (
    f"{MODEL}, {IMAGES} images a rank; ranks   way   images/s   efficiency   exposed ms"
    "   alone ms   overlap"
)
_BUCKETS = f"stock DDP on Gloo, {MODEL}: ms a step by MB of a bucket, and what it took"

_TARGET = 1 / 3
_EXPOSED = f"exposed communication, hier's DDP / stock DDP on Gloo: target <= {_TARGET:.2f}"


@pytest.mark.parametrize("ranks", _ROUNDS)
def test_training_step(ranks: int, benchmark, report: Report, pytestconfig: Any) -> None:
    """Time the step of each way in turn; report medians of pairs."""
    tried = list(BUCKETS_MB) if ranks > 1 else [_DEFAULT_MB]
    job = {"model": MODEL, "images": IMAGES, "rounds": _ROUNDS[ranks], "buckets_mb": tried}
    if pytestconfig.getoption("benchmark_disable"):
        if ranks != 2:
            pytest.skip("a smoke run looks at two ranks")
        job |= {"model": "resnet18", "rounds": 1, "buckets_mb": tried[:2]}
    times: Times = benchmark.pedantic(run_job, args=(ranks,), kwargs=job)
    if ranks > 1:
        row = "".join(f"   {mb} MB {s * 1e3:.0f}" for mb, s in times.buckets.items())
        report.row(_BUCKETS, f"{ranks:>5} ranks{row}   took {times.bucket_mb} MB")
    times.steps = {"none": list(itertools.chain(*times.free.values())), **times.steps}
    times.free["none"] = times.steps["none"]
    found = {way: _write(times, way, ranks, report) for way in times.steps}
    benchmark.extra_info |= {
        f"{w}_{name}": v for w, row in found.items() for name, v in row.items()
    }
    if ranks > 1:
        ours, gloo = (found[way]["exposed_ms"] for way in ("hier", "stock on gloo"))
        verdict = "met" if ours <= _TARGET * gloo else "MISSED"
        report.row(_EXPOSED, f"{ranks:>5} ranks   {ours / gloo:.2f}   {verdict}")


def _write(times: Times, way: str, ranks: int, report: Report) -> dict[str, float]:
    """Add a way's row to the report; return its figures in ms, images per second and shares."""
    steps, free = times.steps[way], times.free[way]
    seconds = statistics.median(steps)
    # Pairs: the machine changes from round to round.
    exposed = statistics.median(a - b for a, b in zip(steps, free, strict=True))
    efficiency = statistics.median(b / a for a, b in zip(steps, free, strict=True))
    row = (
        f"{ranks:>5}   {way:<14} {ranks * IMAGES / seconds:>8.1f} {efficiency:>10.1%}"
        f" {exposed * 1e3:>10.1f}"
    )
    figures = {"images_per_s": ranks * IMAGES / seconds, "exposed_ms": exposed * 1e3}
    if ranks > 1 and way in times.alone:
        alone = statistics.median(times.alone[way])
        figures |= {"alone_ms": alone * 1e3, "overlap": 1 - exposed / alone}
        row += f" {alone * 1e3:>10.1f} {figures['overlap']:>9.0%}"
    report.row(_HEADER, row)
    report.training.append(
        {"model": MODEL, "images": IMAGES, "ranks": ranks, "way": way, **figures}
    )
    return figures
