"""What happens in a start-up, drawn from a seed before anything runs."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

HARMLESS = ("pause", "late", "stranger", "crowd")  # no rank may fail for them
HARMFUL = ("kill", "missing", "store", "cut", "lanes", "secret", "memory")


@dataclass
class Fault:
    kind: str
    rank: int
    at: float  # seconds since the beginning
    lasts: float
    culprits: set[int] = field(default_factory=set)  # empty: it had no effect
    seen_at: float | None = None  # when others can tell that something is wrong

    def __str__(self) -> str:
        return f"{self.kind} {self.rank} at {self.at * 1e3:.1f} ms for {self.lasts:g} s"


@dataclass
class Scenario:
    """Who is where, what they ask for, and what goes wrong."""

    seed: int
    node_of_rank: list[int]
    lanes: int
    secret: bool
    again: bool  # an earlier attempt, whose ranks were killed, left its keys in the store
    faults: list[Fault]

    @property
    def world_size(self) -> int:
        return len(self.node_of_rank)

    def of(self, kind: str, rank: int | None = None) -> list[Fault]:
        """The faults of a kind, of one rank or of all."""
        return [f for f in self.faults if f.kind == kind and rank in (None, f.rank)]

    def __str__(self) -> str:
        faults = "; ".join(map(str, self.faults)) or "no fault"
        again = ", for the second time" * self.again
        return f"seed {self.seed}: nodes {self.node_of_rank}, {self.lanes} lanes{again}, {faults}"


def draw(seed: int) -> Scenario:
    """The scenario of a seed."""
    chance = random.Random(f"scenario {seed}")
    world_size = chance.randint(2, 6)
    nodes = chance.randint(1, world_size)
    node_of_rank = [chance.randrange(nodes) for _ in range(world_size)]
    faults = [
        Fault(
            chance.choice(HARMLESS + HARMFUL),
            chance.randrange(world_size),
            0.2 * chance.random() ** 2,
            chance.choice((0.1, 4.0)),
        )
        for _ in range(chance.choice((0, 1, 1, 1, 2)))
    ]
    return Scenario(
        seed,
        node_of_rank,
        lanes=chance.randint(1, 2),
        secret=chance.random() < 0.5,
        again=chance.random() < 0.2,
        faults=faults,
    )
