"""Tables at the end of a benchmark run, with the line that says on what machine they were taken."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import date
from pathlib import Path

import numpy as np
import pytest

RESULTS = Path(__file__).parent / "results"
REPORT = pytest.StashKey["Report"]()


class Report:
    """Rows under their headers, in the order in which they came."""

    def __init__(self) -> None:
        self.tables: dict[str, list[str]] = {}

    def row(self, header: str, text: str) -> None:
        """Add a row to the table of `header`."""
        self.tables.setdefault(header, []).append(text)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--save-report`."""
    parser.addoption(
        "--save-report",
        metavar="NAME",
        help="write the tables to benchmarks/results/NAME_<date>.md",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Start the report of this run."""
    config.stash[REPORT] = Report()


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config) -> Report:
    """Return the report of this run."""
    return pytestconfig.stash[REPORT]


def machine_line() -> str:
    """Return CPU, load, congestion control, versions and commit."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), "unknown")
    congestion = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    parts = [
        f"{os.cpu_count()} x {cpu}",
        f"load {os.getloadavg()[0]:.1f}",
        f"kernel's congestion control {congestion}",
        f"Python {platform.python_version()}, NumPy {np.__version__}, torch {_torch_version()}",
        f"commit {_commit()}",
    ]
    return "; ".join(parts)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the tables, and save them where asked to."""
    tables = config.stash[REPORT].tables
    if not tables:
        return
    lines = [f"MEASURED on {machine_line()}"]
    for header, rows in tables.items():
        lines += ["", header, *rows]
    terminalreporter.section("results")
    terminalreporter.write("\n".join(lines) + "\n")
    name = config.getoption("--save-report")
    if name:
        path = RESULTS / f"{name}_{date.today().isoformat()}.md"
        RESULTS.mkdir(exist_ok=True)
        path.write_text("# " + name + "\n\n```\n" + "\n".join(lines) + "\n```\n")


def _torch_version() -> str:
    try:
        import torch
    except ImportError:
        return "absent"
    return str(torch.__version__)


def _commit() -> str:
    git = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty"]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
