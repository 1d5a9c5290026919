"""What the model of a training step predicts for the ways of benchmarks.networks.training.

SIMULATED: from the link's figures, which were measured before any step, and from the profile
of the backward pass. Also what cannot run on emulated hosts: MPI and NCCL, by the formulas that are
published for them (Thakur, Rabenseifner and Gropp 2005; NCCL's documentation of its tuning).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

import torch

from allreduce.torch.ddp.buckets import plan
from allreduce.tuning.cost import NETWORK, Layout, Link, distinct_algorithms
from allreduce.tuning.training_step import Message, step_seconds
from benchmarks.networks.training import ALONE, GLOO, OURS, STOCK_BUCKET, layers
from trainer.dry_run.duration import BACKWARD, ITERATION

_FIRST_STOCK_BUCKET = 1 << 20  # bytes: a small one comes first, unless a size is asked for
SIMULATED = "(SIMULATED)"  # ends the names of what is a formula alone


def predicted(hosts: int, found: Mapping[str, Any], scale: int) -> dict[str, float]:
    """Return the seconds of an iteration by way to reduce.

    found: what benchmarks.networks.training says of the network and the computation. scale: by it
    gradients are smaller.
    """
    computing = found["iteration"]
    # The figures of the link are those of ranks that share cores: only such a layout has the times.
    layout = Layout(node_of_rank=tuple(range(hosts)), ranks_per_core=found["ranks_per_core"])
    links = {NETWORK: Link(**found["link"])}
    by_way = {
        way: iteration_seconds(
            layout, links, nbytes // scale, algo, scale=scale, computing=computing
        )
        for way, (nbytes, algo) in OURS.items()
    }
    stock = _stock_buckets(STOCK_BUCKET // scale, STOCK_BUCKET // scale, scale)
    by_way[GLOO] = _iteration(_messages(layout, links, stock, "ring", computing), computing)
    by_way[ALONE] = computing
    return by_way


def iteration_seconds(
    layout: Layout,
    links: Mapping[str, Link],
    bucket_bytes: int,
    algo: str,
    *,
    scale: int = 1,
    computing: float = ITERATION,
) -> float:
    """Return the seconds of an iteration of ResNet-50 with one host a rank, by our DDP.

    computing: seconds of an iteration alone.
    """
    messages = _messages(layout, links, _buckets(bucket_bytes, scale), algo, computing)
    return _iteration(messages, computing)


def _messages(
    layout: Layout,
    links: Mapping[str, Link],
    buckets: Iterable[tuple[float, int]],
    algo: str,
    computing: float,
) -> Iterator[Message]:
    candidates: tuple[str, ...] = (algo,)
    if algo == "auto":
        candidates = tuple(dict.fromkeys(distinct_algorithms(len(layout.nodes)).values()))
    for ready, nbytes in buckets:
        best = min(candidates, key=lambda name: layout.predict(name, nbytes, links))
        yield Message.of(ready * computing / ITERATION, nbytes, best, layout, links)


def published(hosts: int, found: Mapping[str, Any], scale: int) -> dict[str, float]:
    """Return the seconds of an iteration by the models of others, with buckets of stock DDP.

    One reduction at a time, as on NCCL's stream. found, scale: as in `predicted`.
    """
    alpha, computing = found["link"]["alpha"], found["iteration"]
    beta = found["link"]["beta"] * found["ranks_per_core"] / scale
    p, rounds = hosts, 2 * math.ceil(math.log2(hosts))
    halves = 2 * (p - 1) / p * beta
    models = {  # seconds of a message, and of a byte
        "MPI, Rabenseifner": (rounds * alpha, halves),
        "NCCL, ring": (2 * (p - 1) * alpha, halves),
        "NCCL, double tree": (rounds * alpha, 2 * beta),
    }
    return {
        f"{way} {SIMULATED}": _iteration(
            (
                Message(ready * computing / ITERATION, waits, nbytes * per_byte)
                for ready, nbytes in _stock_buckets(STOCK_BUCKET, _FIRST_STOCK_BUCKET, 1)
            ),
            computing,
            lanes=1,
        )
        for way, (waits, per_byte) in models.items()
    }


def _buckets(nbytes: int, scale: int) -> Iterator[tuple[float, int]]:
    """Yield when each bucket of our DDP is ready, in seconds, and its bytes."""
    passed, parameters = _backward(scale)
    for members in plan(parameters, range(len(parameters)), nbytes):
        yield passed[max(members)], sum(parameters[i].nbytes for i in members)


def _stock_buckets(nbytes: int, first: int, scale: int) -> Iterator[tuple[float, int]]:
    """Yield the same of stock DDP, which closes a bucket once it is as large as asked for."""
    passed, parameters = _backward(scale)
    held, limit = 0, first
    for ready, parameter in zip(passed, parameters, strict=True):
        held += parameter.nbytes
        if held >= limit:
            yield ready, held
            held, limit = 0, nbytes
    if held:
        yield passed[-1], held


def _backward(scale: int) -> tuple[list[float], list[torch.Tensor]]:
    """Return the parameters in the order of the backward pass, and when each is ready."""
    order = layers()[::-1]
    passed = list(accumulate(BACKWARD * layer.share for layer in order))
    sizes = (max(1, layer.elements // scale) for layer in order)
    return passed, [torch.empty(size, device="meta", requires_grad=True) for size in sizes]


def _iteration(messages: Iterable[Message], computing: float = ITERATION, lanes: int = 2) -> float:
    backward = computing * BACKWARD / ITERATION
    return step_seconds(computing, backward, messages, lanes)
