"""The algorithms under test, and the traffic that their closed forms predict."""

from collections.abc import Iterable, Iterator
from fractions import Fraction

import numpy as np

from allreduce.schedules import Schedule, algorithms, by_name

COLLECTIVES = (
    "allreduce",
    "reduce_scatter",
    "allgather",
    "broadcast",
    "reduce",
    "gather",
    "barrier",
    "scatter",
    "alltoall",
)
ROOTED = ("broadcast", "reduce", "gather", "scatter")
ALL = [(collective, name) for collective in COLLECTIVES for name in algorithms(collective)]
IDS = [f"{collective}-{name}" for collective, name in ALL]
ALLREDUCES = algorithms("allreduce")
SOME_SIZES = (96, 100, 127, 128, 129, 192, 255, 256)


def roots(collective: str, world_size: int) -> list[int]:
    """The first, a middle and the last rank for a collective that has a root."""
    if collective not in ROOTED:
        return [0]
    return sorted({0, world_size // 2, world_size - 1})


def sizes(collective: str, world_sizes: Iterable[int]) -> list[int]:
    """Those of the world sizes that a test can afford: an alltoall has p^2 chunks for each rank."""
    return [p for p in world_sizes if collective != "alltoall" or p <= 130]


def floor_lg(p: int) -> int:
    return p.bit_length() - 1


def ceil_lg(p: int) -> int:
    return (p - 1).bit_length()


def blocks(p: int) -> list[int]:
    """The powers of two that sum up to p, largest first."""
    return [1 << k for k in reversed(range(p.bit_length())) if p >> k & 1]


def factors(p: int) -> list[int]:
    """The radices of bcube: fours, a two, odd primes."""
    result = []
    for factor in (4, 2, *range(3, p + 1, 2)):
        while p % factor == 0:
            result.append(factor)
            p //= factor
    return result


def torus(p: int) -> list[int]:
    """The sides of the rectangle nearest to a square."""
    width = max(d for d in range(1, p + 1) if p % d == 0 and d * d <= p)
    return [width, p // width]


def sent(schedule: Schedule) -> list[Fraction]:
    """What each rank sends, in buffers."""
    return _totals(schedule, column=1)


def received(schedule: Schedule) -> list[Fraction]:
    """What each rank receives, in buffers."""
    return _totals(schedule, column=2)


def _totals(schedule: Schedule, column: int) -> list[Fraction]:
    moves = schedule.moves()
    chunks = np.zeros(schedule.world_size, np.int64)
    np.add.at(chunks, moves[:, column], moves[:, 4] - moves[:, 3])
    return [Fraction(int(c), schedule.num_chunks) for c in chunks]


def traffic(schedule: Schedule) -> np.ndarray:
    """int64 [2, rounds, world_size]: chunks sent, and received, by each rank in each round."""
    moves = schedule.moves()
    result = np.zeros((2, schedule.num_rounds, schedule.world_size), np.int64)
    for direction in (0, 1):
        np.add.at(
            result[direction],
            (moves[:, 0], moves[:, 1 + direction]),
            moves[:, 4] - moves[:, 3],
        )
    return result


def layouts() -> Iterator[tuple[list[int], int]]:
    """Node sizes, and every possible number of rails."""
    for sizes in ([1], [5], [1, 1, 1], [2, 2], [4, 4], [3, 5, 4], [1, 7], [6] * 5, [8] * 6):
        for rails in range(1, min(sizes) + 1):
            yield sizes, rails


def hierarchical(sizes: list[int], inter: str, rails: int, local: str = "rs_ag") -> Schedule:
    return by_name(f"hierarchical:{local}:{inter}", node_sizes=sizes, rails=rails)
