"""`--dry-run`: what a configuration comes to, without starting it.

Sizes come from the network itself, on torch's meta device, which holds shapes alone; times from
the cost model with assumed links.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allreduce.schedules import by_name
from allreduce.schedules.simulate import PRESETS
from allreduce.torch.ddp.bucket_size import AUTO, DEFAULT
from allreduce.torch.ddp.buckets import plan, travels_as
from allreduce.tuning.cost import LOCAL_STAGE, NETWORK, Layout, Link
from trainer.config.options import ALGORITHMS, Config
from trainer.data import DATASETS, DataError, DatasetInfo, describe
from trainer.model.precision import HALF
from trainer.model.resnet import build_model
from trainer.output.end_table import counted
from trainer.training.learning_rate import Schedule

__all__ = ["dry_run"]

_INSIDE = PRESETS["big_basin"]  # inside a node; between nodes the options say


def dry_run(config: Config) -> str:
    """The whole derived schedule of a run, as text of some 40 lines; starts nothing."""
    info, known = _data(config)
    with torch.device("meta"):
        network = build_model(config.model, info.num_classes)
    sizes = [parameter.nbytes for parameter in network.parameters()]
    iterations = info.train_images // config.minibatch
    used = iterations * config.minibatch
    schedule = Schedule.from_config(config, iterations)
    messages = _messages(config, network)
    return "\n".join(
        [
            f"network        {config.model}, {sum(sizes) // 4:,} parameters",
            f"data           {config.data}, {info.train_images:,} images, {known}",
            f"workers        k = {config.workers} in {counted(config.processes, 'process')} on "
            f"{counted(config.nodes, 'node')}, n = {config.batch}, kn = {config.minibatch:,}",
            f"iterations     {iterations:,} an epoch of {used:,} images (other "
            f"{info.train_images - used:,} are left out in each), "
            f"{config.epochs * iterations:,} in {config.epochs} epochs",
            f"learning rate  {schedule}",
            *_rates(config, schedule, iterations),
            *_memory(config, network, sum(sizes), info.side),
            *_traffic(config, messages, iterations),
            *_time(config, messages, iterations),
        ]
    )


def _data(config: Config) -> tuple[DatasetInfo, str]:
    try:
        return describe(config.source), "as it lies there"
    except DataError:
        info = DATASETS[config.data]
        return info, f"by the figures of {info.summary}, since it is not here"


def _rates(config: Config, schedule: Schedule, per_epoch: int) -> list[str]:
    """The learning rate through warmup, around each milestone, along a cosine, and at the end."""
    last = config.epochs * per_epoch - 1
    warmup = -(-schedule.warmup // max(per_epoch, 1))
    points = {0, 1, last, *(min(e * per_epoch, schedule.warmup) for e in range(1, warmup + 1))}
    points |= {point for milestone in schedule.milestones for point in (milestone - 1, milestone)}
    if schedule.cosine_until:
        points |= {last * tenth // 10 for tenth in range(1, 10)}
    return [
        "         epoch  iteration  lr",
        *(
            f"  {point / per_epoch:>12.4g}  {point:>9,}  {schedule(point):.6g}"
            for point in sorted(points)
            if 0 <= point <= last
        ),
    ]


def _memory(config: Config, network: nn.Module, weights: int, side: int) -> list[str]:
    kept = {"parameters": weights, "gradients": weights, "momentum": weights}
    if HALF[config.wire_dtype]:
        kept[f"gradients as {config.wire_dtype}"] = weights // 2
    if config.ema:
        kept["average"] = weights
    kept[f"activations of {config.batch} images"] = _activations(config, network, side)
    rows = [f"  {name:<26}{nbytes / 1e6:>10,.1f} MB" for name, nbytes in kept.items()]
    return [
        "memory of a worker: what training must hold; workspaces, buffers and data come on top",
        *rows,
        f"  {'in all':<26}{sum(kept.values()) / 1e6:>10,.1f} MB",
    ]


def _activations(config: Config, network: nn.Module, side: int) -> int:
    """Bytes that autograd keeps for the backward pass, counted in a forward pass on shapes."""
    half = HALF.get(config.precision)
    casts = sum(p.numel() for p in network.parameters()) * 2 if half else 0
    network = network.to(half) if half else network
    weights = {p.untyped_storage()._cdata for p in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # holds them, so that no address comes twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    images = torch.empty(config.batch, 3, side, side, device="meta", dtype=half)
    labels = torch.empty(config.batch, device="meta", dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = F.cross_entropy(network(images), labels)
    del loss
    return casts + sum(storage.nbytes() for storage in kept.values())


@dataclass(frozen=True, slots=True)
class _Message:
    """One allreduce of an iteration, and the algorithm between the nodes that it takes."""

    nbytes: int
    algorithm: str
    seconds: float


def _messages(config: Config, network: nn.Module) -> list[_Message]:
    parameters = list(network.parameters())
    cap = DEFAULT if config.bucket_bytes == AUTO else config.bucket_bytes
    wire = HALF[config.wire_dtype]
    buckets = plan(parameters, range(len(parameters))[::-1], int(cap), wire)
    ranks = range(config.processes)
    # One rail: the ranks of a node share its network, so its shards take what one whole takes.
    layout = Layout(
        node_of_rank=tuple(rank * config.nodes // config.processes for rank in ranks), rails=1
    )
    local, gamma = _INSIDE.local, _INSIDE.gamma
    links = {
        LOCAL_STAGE: Link(local.alpha, local.beta, gamma),
        NETWORK: Link(config.alpha * 1e-6, 8e-9 / config.gigabits, gamma),
    }
    names = ALGORITHMS[1:] if config.algo == "auto" else (config.algo,)
    messages = []
    for members in buckets:
        sent = (parameters[index] for index in members)
        nbytes = sum(p.numel() * travels_as(p, wire).itemsize for p in sent)
        seconds = {name: layout.predict(name, nbytes, links) for name in names}
        best = min(seconds, key=lambda name: seconds[name])
        messages.append(_Message(nbytes, best, seconds[best] if config.processes > 1 else 0.0))
    return messages


def _traffic(config: Config, messages: Sequence[_Message], iterations: int) -> list[str]:
    if config.nodes == 1:
        return ["traffic between nodes: none, there is one"]
    shares = {name: _share(name, config.nodes) for name in {m.algorithm for m in messages}}
    sent = sum(m.nbytes * shares[m.algorithm] for m in messages)
    rows = [
        f"  {name:<26}{share:>10.4f} of the gradients is sent by the busiest node"
        + (" = 2 (P - 1) / P" if np.isclose(share, 2 - 2 / config.nodes) else "")
        for name, share in sorted(shares.items())
    ]
    return [
        f"traffic of a node, P = {config.nodes}, {len(messages)} allreduces an iteration",
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


def _time(config: Config, messages: Sequence[_Message], iterations: int) -> list[str]:
    total = sum(message.seconds for message in messages)
    local = _INSIDE.local
    return [
        "communication time, SIMULATED by the cost model, all allreduces one after another;",
        f"  assumed: {config.alpha:g} us a message and {config.gigabits:g} Gbit/s a node, inside "
        f"{local.alpha * 1e6:g} us and {8e-9 / local.beta:g} Gbit/s",
        f"  {'an iteration':<26}{total * 1e3:>10,.2f} ms, hidden as far as backprop takes longer",
        f"  {'an epoch':<26}{total * iterations:>10,.1f} s",
    ]
