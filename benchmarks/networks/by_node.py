"""Collectives node by node beside the same between all ranks, in the same processes by turns.

    python -m benchmarks.networks.by_node FOLDER HOSTS RANKS_PER_HOST MBIT ROUNDS

Hosts are network namespaces on links of MBIT Mbit/s; 0: nodes of one host, over loopback. Rank 0
prints a JSON object: {"collective bytes": [[seconds by node], [seconds between all]]}.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from allreduce.communicator.communicator import Communicator
from allreduce.rendezvous.store import FileStore
from benchmarks.networks.emulated import become_hosts, tell

SIZES = (64 << 10, 4 << 20)  # bytes of the whole buffer
ALLTOALL_SIZES = (1 << 10, 32 << 10)  # above it goes straight
COLLECTIVES = (
    "broadcast",
    "reduce",
    "reduce_scatter",
    "allgather",
    "gather",
    "scatter",
    "alltoall",
)
_TIMEOUT = 60.0


def calls(comm: Communicator, nbytes: int) -> dict[str, Callable[[], object]]:
    """Return each collective on a buffer of `nbytes` bytes, as a function of nothing."""
    whole = np.zeros(nbytes // 4, np.float32)
    part = np.zeros(nbytes // 4 // comm.world_size, np.float32)
    mine = slice(comm.rank * len(part), (comm.rank + 1) * len(part))
    sent = whole if comm.rank == 0 else None
    return {
        "broadcast": lambda: comm.broadcast(whole, 0),
        "reduce": lambda: comm.reduce(whole, root=0),
        "reduce_scatter": lambda: comm.reduce_scatter(whole, in_place=True),
        "allgather": lambda: comm.allgather(whole[mine], in_place=False),
        "gather": lambda: comm.gather(part, 0),
        "scatter": lambda: comm.scatter(part, sent, 0),
        "alltoall": lambda: comm.alltoall(whole),
    }


def sizes_of(collective: str) -> tuple[int, ...]:
    """Return the sizes, in bytes of the whole buffer, at which a collective is measured."""
    return ALLTOALL_SIZES if collective == "alltoall" else SIZES


def measure(groups: list[Communicator], rounds: int) -> dict[str, list[list[float]]]:
    """Return the seconds of each call, of each group in each round but the first."""
    found: dict[str, list[list[float]]] = {}
    for nbytes in (*SIZES, *ALLTOALL_SIZES):
        made = [calls(group, nbytes) for group in groups]
        for name in COLLECTIVES:
            if nbytes not in sizes_of(name):
                continue
            seconds: list[list[float]] = [[] for _ in groups]
            for turn in range(rounds + 1):
                for i in (0, 1) if turn % 2 else (1, 0):
                    groups[i].barrier()
                    begin = time.perf_counter()
                    made[i][name]()
                    groups[i].barrier()  # until all ranks have it
                    seconds[i].append(time.perf_counter() - begin)
            found[f"{name} {nbytes}"] = [one[1:] for one in seconds]
    return found


def main() -> None:
    """Become all ranks of all hosts."""
    folder = Path(sys.argv[1])
    hosts, each, mbit, rounds = (int(word) for word in sys.argv[2:6])
    host = become_hosts(hosts, mbit)
    rank = host * each + next((r for r in range(1, each) if os.fork() == 0), 0)
    groups = [
        Communicator.from_store(
            FileStore(folder / f"store-{local}", _TIMEOUT),
            rank,
            hosts * each,
            nodes=None if mbit else hosts,
            local=local,
            measure=False,
            timeout=_TIMEOUT,
        )
        for local in ("rs_ag", "none")
    ]
    found = measure(groups, rounds)
    tell(found, groups, rank)


if __name__ == "__main__":
    main()
