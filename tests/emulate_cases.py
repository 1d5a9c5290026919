"""Commands on emulated hosts, and why there can be none."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

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


@functools.cache
def why_not() -> str:
    """Return why this machine admits no hosts; empty where it does. Asks none of our own code."""
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "/dev/net/tun is missing, or not for this user"
    if shutil.which("unshare") is None:
        return "no unshare: apt install util-linux"
    spaces = ["--net", "--mount", "--pid", "--fork", "--uts", "--ipc", "--mount-proc"]
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    done = subprocess.run(["unshare", *user, *spaces, "true"], capture_output=True, text=True)
    return f"no namespaces: {done.stderr.strip()}" if done.returncode else ""
