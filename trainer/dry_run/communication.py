"""The allreduces of an iteration: what they carry, how long they take, what a node sends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from torch import nn

from allreduce.schedules import by_name
from allreduce.schedules.simulate import PRESETS
from allreduce.torch.ddp.bucket_size import AUTO, DEFAULT
from allreduce.torch.ddp.buckets import plan, travels_as
from allreduce.tuning.cost import LOCAL_STAGE, NETWORK, Layout, Link
from allreduce.tuning.training_step import Message
from trainer.config.options import ALGORITHMS, Config
from trainer.model.precision import HALF
from trainer.model.work import work_shares

__all__ = ["INSIDE", "Allreduce", "allreduces", "traffic"]

INSIDE = PRESETS["big_basin"]  # inside a node; between nodes the options say


@dataclass(frozen=True, slots=True)
class Allreduce:
    """A bucket of gradients, and the algorithm between the nodes that reduces it.

    ready: the share of the backward pass after which it is complete. waits, moves: seconds of an
    empty one, and those for its bytes.
    """

    nbytes: int
    algorithm: str
    ready: float
    waits: float
    moves: float


def allreduces(config: Config, network: nn.Module, side: int) -> list[Allreduce]:
    """Return the allreduces of an iteration in the order in which they start.

    network: on torch's meta device, of images of side x side pixels.
    """
    parameters = list(network.parameters())
    passed = list(accumulate(work_shares(network, side)[::-1]))[::-1]
    cap = DEFAULT if config.bucket_bytes == AUTO else config.bucket_bytes
    wire = HALF[config.wire_dtype]
    buckets = plan(parameters, range(len(parameters))[::-1], int(cap), wire)
    ranks = range(config.processes)
    # One rail: the ranks of a node share its network, so its shards take what one whole takes.
    layout = Layout(
        node_of_rank=tuple(rank * config.nodes // config.processes for rank in ranks), rails=1
    )
    local, gamma = INSIDE.local, INSIDE.gamma
    links = {
        LOCAL_STAGE: Link(local.alpha, local.beta, gamma),
        NETWORK: Link(config.alpha * 1e-6, 8e-9 / config.gigabits, gamma),
    }
    names = ALGORITHMS[1:] if config.algo == "auto" else (config.algo,)
    found = []
    for members in buckets:
        sent = (parameters[index] for index in members)
        nbytes = sum(p.numel() * travels_as(p, wire).itemsize for p in sent)
        ready = max(passed[index] for index in members)
        if config.processes == 1:
            found.append(Allreduce(nbytes, names[0], ready, 0.0, 0.0))
            continue
        seconds = {name: layout.predict(name, nbytes, links) for name in names}
        best = min(seconds, key=lambda name: seconds[name])
        message = Message.of(ready, nbytes, best, layout, links)
        found.append(Allreduce(nbytes, best, ready, message.waits, message.moves))
    return found


def traffic(config: Config, calls: Sequence[Allreduce], iterations: int) -> list[str]:
    """Return the lines on what a node sends."""
    if config.nodes == 1:
        return ["traffic between nodes: none, there is one"]
    shares = {name: _share(name, config.nodes) for name in {c.algorithm for c in calls}}
    sent = sum(c.nbytes * shares[c.algorithm] for c in calls)
    rows = [
        f"  {name:<26}{share:>10.4f} of the gradients is sent by the busiest node"
        + (" = 2 (P - 1) / P" if np.isclose(share, 2 - 2 / config.nodes) else "")
        for name, share in sorted(shares.items())
    ]
    return [
        f"traffic of a node, P = {config.nodes}, {len(calls)} allreduces an iteration",
        *rows,
        f"  {'an iteration':<26}{sent / 1e6:>10,.1f} MB",
        f"  {'an epoch':<26}{sent * iterations / 1e9:>10,.1f} GB",
    ]


def _share(algorithm: str, nodes: int) -> float:
    """What the busiest node sends in an allreduce, as a share of the buffer."""
    schedule = by_name(algorithm, nodes)
    moves = np.asarray(schedule.moves())
    chunks = np.bincount(moves[:, 1], moves[:, 4] - moves[:, 3], nodes)
    return float(chunks.max() / schedule.num_chunks)
