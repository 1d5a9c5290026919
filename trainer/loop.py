"""The training loop, and what it measures."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.data import Dataset
from trainer.data.normalize import Normalize
from trainer.data.sampler import EpochSampler
from trainer.options import Config
from trainer.report import PHASES
from trainer.schedule import Schedule
from trainer.virtual import VirtualWorkers
from trainer.worker import sum_over_workers

if TYPE_CHECKING:
    from allreduce import Communicator
    from allreduce.optim import SGD
    from allreduce.torch import DistributedDataParallel
    from trainer.log import Log

__all__ = ["Job", "Stopwatch", "summarize", "train_epoch"]


class Stopwatch:
    """Seconds by phase; every lap belongs to one, so that the phases add up to the whole."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.start()

    def start(self) -> None:
        """What passed since the last lap belongs to no phase."""
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """What passed since the last lap belongs to `phase`."""
        now = time.perf_counter()
        self.seconds[phase] += now - self._last
        self._last = now

    def move(self, seconds: float, source: str, target: str) -> None:
        """`seconds` of phase `source` were really of `target`."""
        self.seconds[source] -= seconds
        self.seconds[target] += seconds


@dataclass(slots=True, kw_only=True)
class Job:
    """Everything a worker trains with, and how far it has come.

    `epoch` (from 0) is being trained, and the first `offset` images of its permutation are used.
    """

    config: Config
    comm: Communicator
    dataset: Dataset
    normalize: Normalize
    sampler: EpochSampler
    model: DistributedDataParallel
    virtual: VirtualWorkers
    optimizer: SGD
    schedule: Schedule
    epoch: int = 0
    offset: int = 0
    last_test: dict[str, Any] = field(default_factory=dict)
    watch: Stopwatch = field(default_factory=Stopwatch)
    traffic_before: dict[str, int] = field(init=False)
    began: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.traffic_before = dict(self.comm.traffic())

    @property
    def iteration(self) -> int:
        """Iterations done, counted as if all had been of this run's kn."""
        return self.epoch * self.sampler.iterations + self.offset // self.config.minibatch

    @property
    def epochs_done(self) -> float:
        """The position in the run, in epochs."""
        whole = self.sampler.iterations * self.config.minibatch
        return self.epoch + min(1.0, self.offset / whole)

    @property
    def at_end_of_epoch(self) -> bool:
        """Whether fewer than kn images of the epoch are left, or the run ends here."""
        left = self.sampler.size - self.offset
        return left < self.config.minibatch or self.iteration >= self.last_iteration

    @property
    def last_iteration(self) -> int:
        """How many iterations the run has."""
        whole = self.config.epochs * self.sampler.iterations
        return min(whole, self.config.max_iterations or whole)


def train_epoch(job: Job, log: Log) -> None:
    """Trains from where `job` is to the end of its epoch, or of the run."""
    kn, watch, epoch = job.config.minibatch, job.watch, job.epoch
    window = _Window(job)
    job.model.train()
    watch.start()
    for indices in job.sampler.epoch(epoch, job.offset):
        batch = job.dataset.train_batch(indices, seed=job.config.seed, epoch=epoch)
        watch.lap("data")

        for images, labels in job.virtual.turns(*batch):  # one for each worker in here
            logits = job.model(job.normalize(images))
            loss = F.cross_entropy(logits, labels, reduction="sum") / kn
            watch.lap("forward")

            waited = job.model.statistics()["exposed_seconds"]
            torch.autograd.backward(loss)  # gradients are summed over workers as backprop goes on
            watch.lap("backward")
            watch.move(job.model.statistics()["exposed_seconds"] - waited, "backward", "exposed")
            window.add(loss.detach(), (logits.argmax(1) != labels).sum())

        for group in job.optimizer.param_groups:
            group["lr"] = job.schedule(job.iteration)
        job.optimizer.step()
        job.optimizer.zero_grad()
        watch.lap("optimizer")

        job.offset += kn
        window.iterations += 1
        if job.at_end_of_epoch or job.iteration % job.config.log_every == 0:
            log.train(window.close())
            window = _Window(job)
        log.tick(job.iteration)
        watch.lap("other")
        if job.at_end_of_epoch:
            break


def summarize(job: Job) -> dict[str, Any]:
    """What the end table shows (see trainer.report); every worker must call it."""
    elapsed = time.perf_counter() - job.began
    workers, rank = job.comm.world_size, job.comm.rank
    after = job.comm.traffic()
    sent = {kind: after[kind] - job.traffic_before[kind] for kind in sorted(after)}
    table = torch.zeros(workers, 1 + len(sent), dtype=torch.float64)
    table[rank] = torch.tensor([job.comm.node, *sent.values()], dtype=torch.float64)
    every = torch.tensor(sum_over_workers(job.comm, table.flatten().tolist())).view(workers, -1)
    phases = sum_over_workers(job.comm, list(job.watch.seconds.values()))
    seconds = {name: total / workers for name, total in zip(PHASES, phases, strict=True)}
    statistics = job.model.statistics()
    return {
        **job.last_test,
        "iterations": job.iteration,
        "images_per_second": job.iteration * job.config.minibatch / sum(seconds.values()),
        "training_seconds": sum(seconds.values()),
        "elapsed_seconds": elapsed,
        "phase_seconds": seconds,
        "node_sizes": torch.bincount(every[:, 0].long()).tolist(),
        "sent_bytes": {kind: every[:, i].tolist() for i, kind in enumerate(sent, start=1)},
        "algo": job.config.algo,
        "buckets": statistics["buckets"],
        "bucket_bytes": statistics["bucket_bytes"],
        "gradient_bytes": sum(p.nbytes for p in job.model.module.parameters()),
        "plan": _plan(job),
    }


class _Window:
    """Sums over the iterations of one line of metrics."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._loss: Tensor | float = 0.0
        self._wrong: Tensor | int = 0
        self.iterations = 0
        self._seconds = dict(job.watch.seconds)
        self._began = time.perf_counter()

    def add(self, loss: Tensor, wrong: Tensor) -> None:
        """One worker's part of an iteration: loss / kn summed over its images, wrong answers."""
        self._loss = self._loss + loss  # stay on the device: nothing waits for it here
        self._wrong = self._wrong + wrong

    def close(self) -> dict[str, Any]:
        """The window's line of metrics, the same on every worker.

        FloatingPointError on every worker if the loss is not finite.
        """
        job, workers = self._job, self._job.comm.world_size
        spent = [job.watch.seconds[phase] - self._seconds[phase] for phase in PHASES]
        mine = [float(self._loss), float(self._wrong), *spent]
        loss, wrong, *phases = sum_over_workers(job.comm, mine)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} in iteration {job.iteration - 1}: training diverged; "
                "lower --lr or raise --warmup-epochs"
            )
        images = self.iterations * job.config.minibatch
        elapsed = time.perf_counter() - self._began
        return {
            "iteration": job.iteration,
            "epoch": job.epochs_done,
            "eta": job.schedule(job.iteration - 1),
            "loss": loss / self.iterations,
            "train_error": wrong / images,
            "images_per_second": images / elapsed,
            **{f"{phase}_seconds": s / workers for phase, s in zip(PHASES, phases, strict=True)},
        }


def _plan(job: Job) -> str:
    """What "auto" made of the largest message, and why; nothing for a chosen algorithm."""
    if job.config.algo != "auto":
        return ""
    largest = max(p.nbytes for p in job.model.module.parameters())
    size = job.model.statistics()["bucket_bytes"] or largest
    return str(job.comm.explain(size, "float32"))
