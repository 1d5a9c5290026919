"""What the head of a benchmark says: ranks, nodes, hosts, processors, load, links, versions."""

from __future__ import annotations

import json
import os
import platform
import socket
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import allreduce
from allreduce.communicator.communicator import Communicator
from allreduce.tuning import cost

_FACTS_BYTES = 1024
_HOSTS_SHOWN = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A machine of the job; load is the 1-minute average when the benchmark began."""

    name: str
    cpu: str
    cores: int
    cores_of_rank: int  # that a rank may use; the most of any
    load: float
    ranks: list[int]
    versions: str

    def __str__(self) -> str:
        """Return the machine's line."""
        bound = f" ({self.cores_of_rank} for a rank)" if self.cores_of_rank < self.cores else ""
        return (
            f"host {self.name}: {_ranges(self.ranks)}; {self.cores} x {self.cpu}{bound}; "
            f"load {self.load:.1f}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Where a benchmark ran."""

    ranks: int
    node_of_rank: list[int]
    hosts: list[Host]
    congestion: str  # of the sockets between nodes; empty where there are none
    link: dict[str, float] | None  # measured alpha (s), beta (s/B), gamma (s/B)

    def lines(self) -> list[str]:
        """Return what the reader of a table is told."""
        sizes = Counter(Counter(self.node_of_rank).values())
        nodes = ", ".join(f"{many} x {size}" for size, many in sorted(sizes.items()))
        count = max(self.node_of_rank) + 1
        lines = [f"{self.ranks} ranks; nodes x ranks: {nodes}; {len(self.hosts)} host(s)"]
        if count > len(self.hosts):
            lines.append("nodes are simulated: those of one host exchange by its loopback device")
        if any(len(host.ranks) > host.cores for host in self.hosts):
            lines.append("there are more ranks than cores: times hold the wait for one")
        lines += map(str, self.hosts[:_HOSTS_SHOWN])
        if len(self.hosts) > _HOSTS_SHOWN:
            lines.append(f"and {len(self.hosts) - _HOSTS_SHOWN} more hosts")
        lines += sorted({host.versions for host in self.hosts})
        tcp = f"congestion control {self.congestion}" if self.congestion else "one node, no TCP"
        link = "no link was measured" if self.link is None else f"link: {cost.Link(**self.link)}"
        return [*lines, f"{tcp}; {link}"]


def describe(comm: Communicator) -> Job:
    """Return the job's description on all ranks, each of which calls it."""
    text = json.dumps(
        {
            "name": socket.gethostname()[:255],
            "cpu": cpu_name()[:100],
            "cores": os.cpu_count() or 1,
            "cores_of_rank": len(os.sched_getaffinity(0)),
            "load": os.getloadavg()[0],
            "versions": f"hier-allreduce {allreduce.__version__}, Python "
            f"{platform.python_version()}, NumPy {np.__version__}, Linux {platform.release()}",
        }
    ).encode()
    gathered = comm.allgather(np.frombuffer(text[:_FACTS_BYTES].ljust(_FACTS_BYTES), np.uint8))
    hosts: dict[str, dict[str, Any]] = {}
    for rank, row in enumerate(gathered.reshape(-1, _FACTS_BYTES)):
        facts = json.loads(row.tobytes())
        host = hosts.setdefault(facts["name"], {**facts, "ranks": []})
        host["cores_of_rank"] = max(host["cores_of_rank"], facts["cores_of_rank"])
        host["ranks"].append(rank)
    return Job(
        ranks=comm.world_size,
        node_of_rank=list(comm.node_of_rank),
        hosts=[Host(**facts) for facts in hosts.values()],
        congestion=comm.congestion,
        link=None if comm.link is None else asdict(comm.link),
    )


def cpu_name() -> str:
    """Return the processor's name as the kernel knows it; the architecture where it knows none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def _ranges(ranks: list[int]) -> str:
    """Ranks in words: "rank 3", "ranks 0-3", or each of those that are not in a row."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if ranks == list(range(ranks[0], ranks[-1] + 1)):
        return f"ranks {ranks[0]}-{ranks[-1]}"
    return f"ranks {','.join(map(str, ranks))}"
