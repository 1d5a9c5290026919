"""What a training step takes whose allreduces overlap with the backward pass, by a model.

Gradients become ready one after the other, and their messages start in this order, so many at a
time as the group has lanes. A message waits (for alpha, round by round) while others do too; what
it moves passes the network of its host alone. Hosts compute at speeds that vary from step to step,
and each step lasts as long as its slowest host.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import exp
from statistics import NormalDist, fmean

from allreduce.tuning.cost import Layout, Link

__all__ = ["Message", "backward_seconds", "slowest", "step_seconds"]

_QUANTILES = 2000


@dataclass(frozen=True, slots=True)
class Message:
    """One allreduce of a step; all in seconds.

    ready: after the begin of the backward pass. waits: of an empty one. moves: for its bytes.
    """

    ready: float
    waits: float
    moves: float

    @classmethod
    def of(
        cls, ready: float, nbytes: int, algorithm: str, layout: Layout, links: Mapping[str, Link]
    ) -> Message:
        """Return an allreduce as the cost model has it; KeyError without its links."""
        waits, whole = (layout.predict(algorithm, size, links) for size in (0, nbytes))
        return cls(ready, waits, whole - waits)


def step_seconds(
    computing: float, backward: float, messages: Iterable[Message], lanes: int = 2
) -> float:
    """Return the seconds of a step that computes for so long, of which backward is the last part.

    messages: in the order in which they start.
    """
    return computing - backward + backward_seconds(backward, messages, lanes)


def backward_seconds(computing: float, messages: Iterable[Message], lanes: int = 2) -> float:
    """Return the seconds until the backward pass and its allreduces are over.

    messages: in the order in which they start.
    """
    ends: list[float] = []
    started = moved = 0.0  # when the last message did, and when the network had moved it
    for message in messages:
        lane_free = ends[-lanes] if len(ends) >= lanes else 0.0
        started = max(started, message.ready, lane_free)
        moved = max(started + message.waits, moved) + message.moves
        ends.append(moved)
    return max(computing, moved)


def slowest(hosts: int, sigma: float) -> float:
    """Return how long the slowest of so many hosts computes, where one takes 1.0 on average.

    Their times are log-normal and independent; sigma is the deviation of the logarithm.
    """
    if sigma == 0:
        return 1.0
    # The slowest of p is below a time with the p-th power of one host's probability.
    places = ((i + 0.5) / _QUANTILES for i in range(_QUANTILES))
    log_time = NormalDist(-sigma * sigma / 2, sigma)
    return fmean(exp(log_time.inv_cdf(u ** (1 / hosts))) for u in places)
