"""The paper's fabric, simulated: 32 servers on 50 Gbit/s Ethernet, and the gradients of ResNet-50.

The paper does not say what a message costs there (alpha), so three are shown:
- 10 us: a thread that polls, and a network stack that is bypassed, or nearly;
- 20 us: TCP through the kernel and one switch, nobody asleep;
- 80 us: a message that also wakes two threads, as a pool of workers over epoll does.
Sums take no time: the paper's servers have idle cores for them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from allreduce.schedules import by_name, even_bounds, from_moves
from allreduce.schedules.simulate import Link, Network, simulate
from trainer.model.resnet import build_model

SERVERS, GIGABITS = 32, 50
ALPHAS_US = (10, 20, 80)
_FLOAT = 4


def fabric(alpha_us: float) -> Network:
    """Return one rank a server, as the paper's second phase has it."""
    link = Link.of(microseconds=alpha_us, gigabits=GIGABITS)
    return Network(local=link, inter=link)


def gradients() -> list[int]:
    """Return the elements of each gradient of ResNet-50, in the order in which backprop ends."""
    with torch.device("meta"):
        model = build_model("resnet50")
    return [parameter.numel() for parameter in model.parameters()][::-1]


def buckets(counts: Sequence[int], nbytes: int) -> list[int]:
    """Return the elements of buckets: each is closed by the gradient that would not fit."""
    filled: list[int] = []
    for count in counts:
        if filled and (filled[-1] + count) * _FLOAT <= nbytes:
            filled[-1] += count
        else:
            filled.append(count)
    return filled


def seconds(
    algorithm: str, counts: Sequence[int], alpha_us: float, servers: int = SERVERS, at_once: int = 1
) -> float:
    """Return the simulated seconds of allreduces of `counts` elements.

    at_once: how many are in flight; the next group of them starts when the last one has ended.
    """
    groups = [counts[i : i + at_once] for i in range(0, len(counts), at_once)]
    return sum(_together(algorithm, group, alpha_us, servers) for group in groups)


def _together(algorithm: str, counts: Sequence[int], alpha_us: float, servers: int) -> float:
    """Simulate allreduces that start at one time: one schedule, each of them chunks of its own."""
    one = by_name(algorithm, servers)
    chunks = one.num_chunks
    shift = np.array([0, 0, 0, chunks, chunks, 0])
    moves = np.concatenate([one.moves() + i * shift for i in range(len(counts))])
    moves = moves[np.argsort(moves[:, 0], kind="stable")]
    bounds, start = [0], 0
    for count in counts:
        bounds += [start + offset for offset in even_bounds(count, chunks)[1:]]
        start += count
    schedule = from_moves(servers, chunks * len(counts), moves)
    return simulate(schedule, bounds, network=fabric(alpha_us)).seconds
