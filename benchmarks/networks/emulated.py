"""Programs that become all ranks of a benchmark, and the tests that start them.

A program prints a JSON value from rank 0 alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from allreduce.communicator.communicator import Communicator
from benchmarks.networks import namespaces

RENO = {"ALLREDUCE_TCP_CONGESTION": "reno"}  # a namespace may always have it


def become_hosts(count: int, mbit: int, *, ring: bool = False) -> int:
    """Become `count` processes, on hosts with links of `mbit` Mbit/s; return the number of each.

    Where `mbit` is 0 they are on this host, and talk over loopback.
    """
    if not mbit:
        return next((host for host in range(1, count) if os.fork() == 0), 0)
    host = namespaces.fork_hosts(count, mbit * 1e6, ring=ring)
    os.environ["ALLREDUCE_HOST"] = namespaces.address(host)
    return host


def tell(found: object, groups: Iterable[Communicator], rank: int) -> None:
    """Print what was found, once, and leave the groups."""
    if rank == 0:
        print(json.dumps(found), flush=True)
    for group in groups:
        group.close()


def run(
    module: str, folder: Path, numbers: Iterable[int], deadline: float, env: Mapping[str, str]
) -> Any:
    """Return what a program of this package prints."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.networks.{module}", str(folder), *map(str, numbers)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=deadline,
        check=True,
        env=os.environ | env,
    )
    return json.loads(done.stdout)
