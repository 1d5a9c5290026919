"""Test error over the whole test set, each image counted once, whoever looks at it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.launch.process_group import sum_over_workers

if TYPE_CHECKING:
    from allreduce import Communicator
    from trainer.data.normalize import Normalize
    from trainer.training.run_state import Job

__all__ = ["count_errors", "evaluate", "mean_statistics", "rank0_statistics", "wearing"]

Statistics = dict[str, Tensor]  # buffers by name


def evaluate(job: Job) -> dict[str, Any]:
    """Test error and loss over the whole test set, each image counted once; alike on all workers.

    Each process takes its share of the images. One network is evaluated: all have the batch
    normalisation statistics of worker 0 (--bn-eval rank0, as a checkpoint of its would hold), or
    those of all workers pooled (--bn-eval mean). Where weights are averaged (--ema), their average
    is tested as well, with worker 0's averaged statistics.
    """
    network = job.model.module
    if job.config.bn_eval == "mean":
        statistics = mean_statistics(job.virtual.statistics(), job.comm)
    else:
        statistics = rank0_statistics(network, job.comm)
    counts = _of_network(job, network, statistics)
    if job.average:
        averaged = rank0_statistics(job.average.module, job.comm)
        counts["average_error"] = _of_network(job, job.average.module, averaged)["test_error"]
    job.last_test = {"iteration": job.iteration, "epoch": job.progress, **counts}
    return job.last_test


def _of_network(job: Job, network: nn.Module, statistics: Statistics) -> dict[str, Any]:
    with wearing(network, statistics), job.precision.autocast():
        return count_errors(network, job.feed.test(), job.normalize, job.comm)


@torch.no_grad()
def count_errors(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    normalize: Normalize,
    comm: Communicator,
) -> dict[str, Any]:
    """Error, loss and number of the test images that the processes have in their `batches`."""
    wrong, loss, images = torch.zeros(3, dtype=torch.float64)
    for pixels, labels in batches:
        logits = network(normalize(pixels))
        labels = labels.to(logits.device)
        wrong += (logits.argmax(1) != labels).sum().cpu()
        loss += F.cross_entropy(logits.float(), labels, reduction="sum").cpu()
        images += len(labels)
    wrong, loss, images = sum_over_workers(comm, [wrong, loss, images])
    return {
        "test_error": wrong / images,
        "test_loss": loss / images,
        "test_images": int(images),
    }


def rank0_statistics(network: nn.Module, comm: Communicator) -> Statistics:
    """The buffers of the network of process 0, on every process."""
    own = dict(network.named_buffers())
    kinds: dict[torch.dtype, list[str]] = {}
    for name, buffer in own.items():
        kinds.setdefault(buffer.dtype, []).append(name)
    theirs: Statistics = {}
    for names in kinds.values():  # one message per dtype, not one per buffer
        flat = torch.cat([own[name].flatten() for name in names]).cpu()
        comm.broadcast(flat, root=0)
        parts = torch.split(flat, [own[name].numel() for name in names])
        theirs |= {name: part.view_as(own[name]) for name, part in zip(names, parts, strict=True)}
    return theirs


def mean_statistics(per_worker: Sequence[Mapping[str, Tensor]], comm: Communicator) -> Statistics:
    """The running statistics of all workers of all processes, pooled as if they were of one.

    `per_worker` holds the buffers of each worker in this process. The mean is the mean of the
    means. The variance is that of the mixture of all workers' distributions: the mean of the
    variances plus the variance of the means, E[v + m^2] - E[m]^2. Both in f64.
    """
    names = [name for name in per_worker[0] if name.endswith("running_mean")]
    moments = []
    for name in names:
        means = torch.stack([of_worker[name].double() for of_worker in per_worker])
        second = torch.stack([of_worker[_variance(name)].double() for of_worker in per_worker])
        moments += [means.sum(0), (second + means.square()).sum(0)]
    count = torch.tensor([float(len(per_worker))], dtype=torch.float64)
    flat = torch.cat([count, *(moment.cpu() for moment in moments)])
    comm.allreduce(flat, op="sum")
    parts = iter(torch.split(flat[1:] / flat[0], [len(moment) for moment in moments]))
    pooled: Statistics = {}
    for name in names:
        mean, square = next(parts), next(parts)
        pooled[name] = mean
        pooled[_variance(name)] = (square - mean.square()).clamp_(min=0)
    return pooled


def _variance(name: str) -> str:
    return name.removesuffix("mean") + "var"


@contextlib.contextmanager
def wearing(network: nn.Module, statistics: Statistics) -> Iterator[None]:
    """Inside, the network evaluates with these buffers; afterwards it has its own again."""
    worn = {n: buffer for n, buffer in network.named_buffers() if n in statistics}
    own = {name: buffer.clone() for name, buffer in worn.items()}
    for name, buffer in worn.items():
        buffer.copy_(statistics[name])
    network.eval()
    try:
        yield
    finally:
        for name, buffer in worn.items():
            buffer.copy_(own[name])
