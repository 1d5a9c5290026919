"""An allreduce in one call, and cut into as many calls as there are lanes, on emulated hosts.

    python -m allreduce.emulate --hosts 2 --rate 10Gbit --delay 2ms --dilation 20 --loss 0.01% -- \
        python -m benchmarks.networks.lanes

A lane is a socket to each peer, which carries one call at a time. Rank 0 prints ms on the network
that is emulated, the median of three turns behind one that does not count.
"""

from __future__ import annotations

import os
import statistics
import time

import numpy as np

from allreduce.communicator.communicator import Communicator
from allreduce.communicator.init import init

NBYTES = 64 << 20
LANES = (1, 2, 4, 8)
_TURNS = 4


def seconds(comm: Communicator, calls: int) -> float:
    """Return what the ring takes with so many calls in flight."""
    parts = np.array_split(np.zeros(NBYTES // 4, np.float32), calls)
    turns = []
    for _ in range(_TURNS):
        comm.barrier()
        begin = time.perf_counter()
        for work in [comm.allreduce(part, algo="ring", async_op=True) for part in parts]:
            work.wait()
        turns.append(time.perf_counter() - begin)
    return statistics.median(turns[1:])


def main() -> None:
    """Be one rank."""
    dilation = float(os.environ["ALLREDUCE_DILATION"])
    for generation, lanes in enumerate(LANES, start=1):
        comm = init(generation=generation, lanes=lanes, measure=False)
        taken = seconds(comm, lanes) / dilation * 1e3
        if comm.rank == 0:
            print(f"{lanes} lanes: {taken:.1f} ms", flush=True)
        comm.barrier()
        comm.close()


if __name__ == "__main__":
    main()
