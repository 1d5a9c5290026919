"""`--dry-run`: what a configuration comes to, without starting it.

Sizes come from the network itself, on torch's meta device, which holds shapes alone; times from
models with assumed links.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config.options import Config
from trainer.data import DATASETS, DataError, DatasetInfo, describe
from trainer.dry_run.communication import allreduces, traffic
from trainer.dry_run.duration import duration
from trainer.model.precision import HALF
from trainer.model.resnet import build_model
from trainer.output.end_table import counted
from trainer.training.learning_rate import Schedule

__all__ = ["dry_run"]


def dry_run(config: Config) -> str:
    """The whole derived schedule of a run, as text of some 50 lines; starts nothing."""
    info, known = _data(config)
    with torch.device("meta"):
        network = build_model(config.model, info.num_classes)
    sizes = [parameter.nbytes for parameter in network.parameters()]
    iterations = info.train_images // config.minibatch
    used = iterations * config.minibatch
    schedule = Schedule.from_config(config, iterations)
    calls = allreduces(config, network, info.side)
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
            *traffic(config, calls, iterations),
            *duration(config, calls, iterations, info.side),
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
