"""Allreduce with and without checksums, in the same processes by turns.

    python -m benchmarks.networks.checksums FOLDER RANKS MBIT BYTES ROUNDS CALLS

Every rank is a node of its own: a network namespace on a link of MBIT Mbit/s, or over loopback
where that is 0. Rank 0 prints a JSON list: seconds of a call in each round, with and without.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from allreduce.communicator.communicator import Communicator
from allreduce.rendezvous.store import FileStore
from benchmarks.networks.emulated import become_hosts, tell

_TIMEOUT = 60.0


def measure(groups: list[Communicator], nbytes: int, rounds: int, calls: int) -> list[list[float]]:
    """Return the seconds of a call, of each group in each round but the first."""
    x = np.zeros(nbytes // 4, np.float32)
    seconds: list[list[float]] = [[] for _ in groups]
    for turn in range(rounds + 1):
        for i in (0, 1) if turn % 2 else (1, 0):
            groups[i].barrier()
            begin = time.perf_counter()
            for _ in range(calls):
                groups[i].allreduce(x)
            seconds[i].append((time.perf_counter() - begin) / calls)
    return [one[1:] for one in seconds]


def main() -> None:
    """Become all ranks."""
    folder = Path(sys.argv[1])
    ranks, mbit, nbytes, rounds, calls = (int(word) for word in sys.argv[2:7])
    rank = become_hosts(ranks, mbit)
    groups = [
        Communicator.from_store(
            FileStore(folder / f"store-{on}", _TIMEOUT),
            rank,
            ranks,
            nodes=None if mbit else ranks,
            checksum=on,
            measure=False,
            timeout=_TIMEOUT,
        )
        for on in (True, False)
    ]
    found = measure(groups, nbytes, rounds, calls)
    tell(found, groups, rank)


if __name__ == "__main__":
    main()
