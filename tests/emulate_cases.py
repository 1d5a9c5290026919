"""Commands on emulated hosts, and why there can be none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.networks.namespaces import why_no_emulation as why_not

__all__ = ["DELAY", "RATE", "command", "emulate", "why_not"]

_ROOT = Path(__file__).resolve().parents[1]
DELAY, RATE = 0.02, 40e6  # slow enough for any machine


def command(*words: str) -> list[str]:
    """Return the words of `python -m allreduce.emulate`."""
    return [sys.executable, "-m", "allreduce.emulate", *words]


def emulate(
    *words: str,
    hosts: int = 2,
    rate: str = f"{RATE:.0f}",
    delay: str = f"{DELAY}s",
    timeout: float = 60,
) -> subprocess.CompletedProcess[str]:
    """Run it; `words` are further options, then -- and the command."""
    network = ("--hosts", str(hosts), "--rate", rate, "--delay", delay)
    return subprocess.run(
        command(*network, *words),
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=_ROOT,
        check=False,
    )
