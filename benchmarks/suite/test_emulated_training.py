"""Training steps on emulated hosts, beside what the model predicts: the paper's figures 7 and 8.

EMULATED: real ranks, our DDP's reducer and buckets, TCP; computation is a sleep. The short form:
docs/claims.md has the table of 2 to 32 hosts, by `python -m benchmarks.networks.figures`.
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.conftest import Report, is_smoke
from benchmarks.networks import figures, namespaces

_HOSTS, _WAYS = 4, "halving_doubling,Gloo"
_SMOKE_HOSTS, _SMOKE_WAYS, _SMOKE_DILATION = 2, "auto", 4
_DEADLINE = 110
_HEAD = f"EMULATED: ResNet-50's step as on the paper's servers, by figures\n{figures.HEAD}"


@pytest.mark.timeout(118)
def test_training_steps(benchmark: Any, report: Report, request: pytest.FixtureRequest) -> None:
    """Measure the ways one after the other, in one run of the emulator."""
    if reason := namespaces.why_no_emulation():
        report.row(_HEAD, f"absent: {reason}")
        pytest.skip(reason)
    hosts, ways, dilation = _HOSTS, _WAYS, 0
    if is_smoke(request.config):
        hosts, ways, dilation = _SMOKE_HOSTS, _SMOKE_WAYS, _SMOKE_DILATION
    job = {"hosts": hosts, "steps": 1, "ways": ways, "dilation": dilation, "deadline": _DEADLINE}
    found = benchmark.pedantic(figures.run, kwargs=job)
    for row in figures.rows(hosts, found):
        report.row(_HEAD, row)
    assert len(found["seconds"]) == (1 if is_smoke(request.config) else 3)
