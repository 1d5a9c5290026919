"""How long a start-up takes where each rank has a core of its own, in virtual time.

    python -m tests.simulation.startup.clock 32 256 1024

All ranks begin at once, 8 to a node. A message takes 50 us, and 50 more to wake its receiver. A
call of the store takes 100 us, and computation no time. Prints the time, and how many calls of the
store a rank makes.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Sequence
from unittest import mock

from allreduce.rendezvous.connect import Connections
from allreduce.rendezvous.startup import Startup

from . import look
from .life import Life
from .net import Store
from .scenario import Scenario
from .world import BEGIN, World

MESSAGE = 50e-6  # seconds, and as many for a wake-up
PER_NODE = 8


class SteadyWorld(World):
    """A world in which everything that passes between ranks takes the same time."""

    def delay(self, most: float) -> float:
        return MESSAGE


class CountingStore(Store):
    """The store of `allreduce.init`: it gives many values at one call."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.calls: Counter[str] = Counter()

    def _call(self) -> None:
        self.calls[self._world.me.name] += 1
        self._world.me.sleep(2 * MESSAGE)

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """The values that are there."""
        self._call()
        return [self.values.get(key) for key in keys]


def clock(world_size: int) -> tuple[float, Counter[str]]:
    """Start that many ranks; return the seconds until the last has started, and their calls."""
    nodes = [rank // PER_NODE for rank in range(world_size)]
    life = Life(Scenario(0, nodes, lanes=2, secret=False, again=False, faults=[]), SteadyWorld)
    life.store = store = CountingStore(life.world)
    with (
        # What connects on demand is for later, and makes descriptors of the real system.
        mock.patch.object(Startup, "make_connector", return_value=None),
        mock.patch.object(look, "at", return_value=""),  # it knows groups with all pairs connected
    ):
        life.run()
    assert all(isinstance(rank.result, Connections) for rank in life.ranks)
    return max(rank.ended or 0.0 for rank in life.ranks) - BEGIN, store.calls


def main() -> None:
    """Print a line for each number of ranks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ranks", type=int, nargs="+")
    for world_size in parser.parse_args().ranks:
        seconds, calls = clock(world_size)
        others = statistics.median(n for name, n in calls.items() if name != "rank 0")
        print(
            f"{world_size:5d} ranks: {seconds * 1e3:6.1f} ms; calls of the store: rank 0 "
            f"{calls['rank 0']}, the others {others:.0f}"
        )


if __name__ == "__main__":
    main()
