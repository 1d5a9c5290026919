"""The cost model: what a schedule takes on links of given alpha, beta and gamma, and which one to
choose for a size.

alpha is seconds per message, beta seconds per byte sent, gamma seconds per byte reduced. A round
takes what its busiest rank needs for its messages, in or out, and for its reductions
(Hockney's model, as in Thakur, Rabenseifner and Gropp 2005).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from allreduce import _C

__all__ = ["CANDIDATES", "Link", "choose", "comparison", "crossovers", "predict"]

CANDIDATES = ("recursive_doubling", "halving_doubling", "circulant", "bcube", "ring")
_SIZES = tuple(2**k for k in range(6, 33))


@dataclass(frozen=True, slots=True)
class Link:
    """How fast ranks exchange messages: seconds per message, per byte, per byte reduced."""

    alpha: float
    beta: float
    gamma: float

    def __str__(self) -> str:
        """Return the three figures in the units that people use."""
        return (
            f"alpha {self.alpha * 1e6:.1f} us/message, beta {self.beta * 1e9:.3f} ns/B, "
            f"gamma {self.gamma * 1e9:.3f} ns/B"
        )


@lru_cache(maxsize=256)
def _demands(algorithm: str, num_ranks: int) -> tuple[float, float, float]:
    """Return (messages, share of the buffer sent, share reduced) on the critical path."""
    schedule = _C.build(_C.Collective.allreduce, algorithm, num_ranks)
    messages = sent = reduced = 0.0
    moves = np.asarray(schedule.moves())
    for number in range(len(schedule.rounds)):
        rows = moves[moves[:, 0] == number]
        share = (rows[:, 4] - rows[:, 3]) / schedule.num_chunks
        pairs = np.unique(rows[:, 1:3], axis=0)
        ends = [np.bincount(pairs[:, column]).max() for column in (0, 1)]
        messages += max(ends)
        sent += max(np.bincount(rows[:, column], weights=share).max() for column in (1, 2))
        adding = rows[:, 5] == 1
        if adding.any():
            reduced += np.bincount(rows[adding, 2], weights=share[adding]).max()
    return messages, sent, reduced


def predict(algorithm: str, num_ranks: int, nbytes: int, link: Link) -> float:
    """Return the predicted seconds of an allreduce of `nbytes` among `num_ranks` ranks."""
    if num_ranks == 1:
        return 0.0
    messages, sent, reduced = _demands(algorithm, num_ranks)
    return messages * link.alpha + nbytes * (sent * link.beta + reduced * link.gamma)


def choose(num_ranks: int, nbytes: int, link: Link) -> str:
    """Return the candidate with the least predicted time; the first of equals."""
    return min(CANDIDATES, key=lambda name: predict(name, num_ranks, nbytes, link))


def comparison(num_ranks: int, nbytes: int, link: Link) -> str:
    """Return the predicted times of all candidates, fastest first, in words."""
    times = {name: predict(name, num_ranks, nbytes, link) for name in CANDIDATES}
    rows = (f"{name} {seconds * 1e6:.0f} us" for name, seconds in times.items())
    ordered = sorted(rows, key=lambda row: float(row.split()[1]))
    return f"Predicted: {', '.join(ordered)} ({link})"


def crossovers(num_ranks: int, link: Link) -> list[tuple[int, str]]:
    """Return (largest number of bytes, algorithm) rows, ascending, the last without a limit."""
    rows: list[tuple[int, str]] = []
    for size in _SIZES:
        name = choose(num_ranks, size, link)
        if rows and rows[-1][1] == name:
            rows[-1] = (size, name)
        else:
            rows.append((size, name))
    rows[-1] = (2**63 - 1, rows[-1][1])
    return rows
