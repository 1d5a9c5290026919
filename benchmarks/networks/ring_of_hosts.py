"""Allreduces between hosts that are cabled in a ring, without a switch, by turns.

    python -m benchmarks.networks.ring_of_hosts FOLDER HOSTS MBIT BYTES ROUNDS

Rank 0 prints a JSON object: {algorithm: [seconds of each round]}.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path

import numpy as np

from allreduce.communicator.communicator import Communicator
from allreduce.rendezvous.store import FileStore
from allreduce.schedules import Schedule
from benchmarks.networks.emulated import become_hosts, tell

OURS = ("ring", "halving_doubling", "circulant", "direct")
_EXAMPLE = Path(__file__).resolve().parents[2] / "examples/own_schedule.py"
_TIMEOUT = 60.0


def two_way_ring(hosts: int) -> Schedule:
    """Return the schedule that the example makes."""
    spec = importlib.util.spec_from_file_location("own_schedule", _EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    made: Schedule = example.two_way_ring(hosts)
    return made


def main() -> None:
    """Become all hosts, a rank on each."""
    folder = Path(sys.argv[1])
    hosts, mbit, nbytes, rounds = (int(word) for word in sys.argv[2:6])
    rank = become_hosts(hosts, mbit, ring=True)
    store = FileStore(folder / "store", _TIMEOUT)
    comm = Communicator.from_store(store, rank, hosts, measure=False, timeout=_TIMEOUT)
    algorithms = {name: name for name in OURS} | {"two_way_ring": two_way_ring(hosts)}
    x = np.zeros(nbytes // 4, np.float32)
    found: dict[str, list[float]] = {name: [] for name in algorithms}
    for turn in range(rounds + 1):
        for name, algorithm in algorithms.items():
            comm.barrier()
            begin = time.perf_counter()
            comm.allreduce(x, algo=algorithm)
            if turn:
                found[name].append(time.perf_counter() - begin)
    tell(found, [comm], rank)


if __name__ == "__main__":
    main()
