"""An allreduce of your own, for hosts that are cabled in a ring, without a switch.

    bash examples/launch/environment.sh examples/own_schedule.py

A cable carries as much each way. A ring algorithm sends one way alone, and halving/doubling needs
cables between hosts that have none. This one sends half of the buffer up the ring while the other
half travels down it: twice the bandwidth (docs/own_schedules.md has the measurement).
"""

import sys

import numpy as np

import allreduce
from allreduce import schedules


def two_way_ring(p: int) -> schedules.Schedule:
    """Chunks 0 to p - 1 travel up the ring, chunks p to 2p - 1 down: reduced, then copied on."""
    moves = []
    for t in range(2 * (p - 1)):
        reduce = int(t < p - 1)
        for rank in range(p):
            up, down = (rank - t) % p, p + (rank + t) % p
            moves.append((t, rank, (rank + 1) % p, up, up + 1, reduce))
            moves.append((t, rank, (rank - 1) % p, down, down + 1, reduce))
    return schedules.from_moves(p, 2 * p, moves)


def main() -> None:
    """Register it, and run it once."""
    with allreduce.init(timeout=60) as comm:
        # Refuses, and says why, what is no allreduce.
        schedules.register("two_way_ring", two_way_ring(comm.world_size))
        x = np.full(1_000_000, comm.rank, np.float32)
        comm.allreduce(x, algo="two_way_ring")
        assert (x == comm.world_size * (comm.world_size - 1) / 2).all()
        sys.stdout.write(f"rank {comm.rank} of {comm.world_size}: the sum is right\n")


if __name__ == "__main__":
    main()
