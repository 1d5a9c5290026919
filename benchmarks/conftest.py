"""Tables at the end of a benchmark run, with the line that says on what machine they were taken."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import warnings
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from allreduce.commands.job_description import cpu_name
from allreduce.commands.native_build import require_core
from benchmarks.harness import floors as floors_module
from benchmarks.harness.emulated_worlds import EmulatedWorlds
from benchmarks.harness.floors import Floors
from benchmarks.harness.layout_worlds import WorldsByLayout
from benchmarks.harness.measurements import Measurement
from benchmarks.harness.sizes import SIZES, SMOKE_SIZES
from benchmarks.report import tables, targets

RESULTS = Path(__file__).parent / "results"
SWEEPS = ("sweep", "averages", "dtypes")  # the tests of test_allreduce.py
REPORT = pytest.StashKey["Report"]()


class Report:
    """What was measured: rows under their headers, as they came, and measurements.

    training: rows of test_scaling.py, for pictures.
    """

    def __init__(self) -> None:
        self.tables: dict[str, list[str]] = {}
        self.measurements: list[Measurement] = []
        self.training: list[dict[str, Any]] = []

    def row(self, header: str, text: str) -> None:
        """Add a row to the table of `header`."""
        self.tables.setdefault(header, []).append(text)

    def lines(self) -> Iterator[str]:
        """Yield everything as text; the targets last."""
        for header, rows in self.tables.items():
            yield from ("", header, *rows)
        for show, tests in (
            (tables.sweep, SWEEPS),
            (tables.algorithms, ("algorithms",)),
        ):
            for test in tests:
                yield ""
                yield from show(
                    [measurement for measurement in self.measurements if measurement.test == test]
                )
        if self.measurements:
            yield from (
                "TARGETS: medians of pairs, the worst size",
                *targets.lines(self.measurements),
            )

    def figures(self, machine: str) -> dict[str, Any]:
        """Return what `benchmarks.report.pictures` draws, as JSON has it."""
        sweep = [
            measurement.described()
            for measurement in self.measurements
            if measurement.test in SWEEPS
        ]
        return {"machine": machine, "sweep": sweep, "training": self.training}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--save-report`."""
    parser.addoption(
        "--save-report",
        metavar="NAME",
        help="write the tables to benchmarks/results/NAME_<date>.md, the figures to .json",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Start the report of this run, unless it would be of another core than the commit's."""
    config.stash[REPORT] = Report()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            require_core()
        except RuntimeWarning as stale:
            raise pytest.UsageError(str(stale)) from None


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config) -> Report:
    """Return the report of this run."""
    return pytestconfig.stash[REPORT]


@pytest.fixture(scope="session")
def worlds_by_layout() -> Iterator[WorldsByLayout]:
    """Yield the players of one layout after the other."""
    made = WorldsByLayout()
    yield made
    made.close()


@pytest.fixture(scope="session")
def emulated_worlds() -> Iterator[EmulatedWorlds]:
    """Yield the ranks of one setup after the other."""
    made = EmulatedWorlds()
    yield made
    made.close()


@pytest.fixture(scope="session")
def floors(pytestconfig: pytest.Config, report: Report) -> Floors:
    """Measure what the machine allows, once."""
    measured = floors_module.measure(SMOKE_SIZES if is_smoke(pytestconfig) else SIZES)
    for line in measured.lines():
        report.row("FLOORS, the best that was seen", line)
    return measured


def is_smoke(config: pytest.Config) -> bool:
    """Say whether each benchmark runs once only, to see that it works."""
    return bool(config.getoption("benchmark_disable"))


def machine_line() -> str:
    """Return CPU, load, congestion control, versions and commit."""
    congestion = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    parts = [
        f"{os.cpu_count()} x {cpu_name()}",
        f"load {os.getloadavg()[0]:.1f}",
        f"kernel's congestion control {congestion}",
        f"Python {platform.python_version()}, NumPy {np.__version__}, torch {_torch_version()}",
        f"commit {_commit()}",
    ]
    return "; ".join(parts)


def pytest_report_header() -> str:
    """Say what the time is that pytest-benchmark shows."""
    return (
        "times of a benchmark: seconds a call of ours, the median by the clocks of its ranks, "
        "which are processes of their own"
    )


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the tables, and save them where asked to."""
    results = list(config.stash[REPORT].lines())
    if not any(results):
        return
    if is_smoke(config):
        terminalreporter.write("no tables: nothing was timed\n")
        return
    machine = machine_line()
    lines = [f"MEASURED on {machine}", *results]
    terminalreporter.section("results")
    terminalreporter.write("\n".join(lines) + "\n")
    name = config.getoption("--save-report")
    if name:
        path = RESULTS / f"{name}_{date.today().isoformat()}.md"
        RESULTS.mkdir(exist_ok=True)
        path.write_text("# " + name + "\n\n```\n" + "\n".join(lines) + "\n```\n")
        figures = config.stash[REPORT].figures(machine)
        if figures["sweep"] or figures["training"]:
            path.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")


def _torch_version() -> str:
    try:
        import torch
    except ImportError:
        return "absent"
    return str(torch.__version__)


def _commit() -> str:
    git = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty"]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[float]]]:
    """Return what is given to matplotlib's `plot` and `bar`: label and heights."""
    from matplotlib.axes import Axes

    calls: list[tuple[str, list[float]]] = []
    for method in ("plot", "bar"):
        real = getattr(Axes, method)

        def noted(axes, x, y, *more, _real=real, **options):
            calls.append((options.get("label", ""), list(y)))
            return _real(axes, x, y, *more, **options)

        monkeypatch.setattr(Axes, method, noted)
    return calls
