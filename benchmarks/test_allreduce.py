"""hier against Gloo through torch.distributed, on one node and over TCP, in the same processes.

The limit is the memory traffic: a private buffer of n bytes on each of p ranks takes at least
2n bytes of copying a rank on one node, so it is shown as the time of two memcpy of the buffer.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks.conftest import Report
from benchmarks.worlds import World

SIZES = (1 << 10, 64 << 10, 1 << 20, 100 << 20)  # bytes
LAYOUTS = [(2, 1), (4, 1), (2, 2), (4, 2), (4, 4)]  # (ranks, nodes)
ROUNDS = 7
_HEADER = "ranks x nodes        bytes   gloo us   hier us   gloo/hier   2 memcpy us"


@pytest.fixture(scope="module", params=LAYOUTS, ids=lambda layout: f"{layout[0]}r{layout[1]}n")
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Yield the world of one layout."""
    ranks, nodes = request.param
    with World(ranks, nodes) as made:
        made.layout = f"{ranks} x {nodes}"
        yield made


@pytest.mark.parametrize("nbytes", SIZES)
def test_allreduce(world: World, nbytes: int, benchmark, report: Report) -> None:
    """Measure rounds of both backends in turn; report medians of seconds per call."""
    calls = max(1, min(50, (20 << 20) // nbytes))
    times: dict[str, list[float]] = {"gloo": [], "hier": []}

    def one_round() -> None:
        for backend, seconds in times.items():
            seconds.append(world.time(backend, nbytes // 4, "float32", calls))

    benchmark.pedantic(one_round, rounds=ROUNDS)
    gloo, hier = (statistics.median(times[name]) * 1e6 for name in ("gloo", "hier"))
    floor = 2 * _memcpy_seconds(nbytes) * 1e6
    benchmark.extra_info |= {"gloo_us": gloo, "hier_us": hier, "memcpy2_us": floor}
    report.row(
        _HEADER,
        f"{world.layout:>13} {nbytes:>12} {gloo:>9.1f} {hier:>9.1f} {gloo / hier:>11.1f}"
        f" {floor:>13.1f}",
    )


def _memcpy_seconds(nbytes: int) -> float:
    source, target = np.zeros((2, nbytes), np.uint8)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - begin)
    return min(times)
