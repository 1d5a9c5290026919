"""Lines of metrics while training goes on, and the summary at its end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trainer.launch.process_group import sum_over_workers
from trainer.model.precision import HALF
from trainer.output.end_table import PHASES
from trainer.training.run_state import Job

__all__ = ["Window", "summarize"]


class Window:
    """Sums over the iterations of one line of metrics."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._this: list[Tensor | float] = [0.0, 0]  # of the iteration that is under way
        self._sums: list[Tensor | float] = [0.0, 0]  # loss and wrong answers
        self._sound = 0  # iterations in these sums
        self._steps: list[float] = []  # seconds of each iteration
        self._seconds = dict(job.watch.seconds)
        self._began = self._step_began = time.perf_counter()

    def add(self, loss: Tensor, wrong: Tensor) -> None:
        """This worker's part of one iteration: loss / kn summed over its images, wrong answers."""
        for i, value in enumerate((loss, wrong)):  # stay on the device: nothing waits for it here
            self._this[i] = self._this[i] + value

    def end_iteration(self, sound: bool) -> None:
        """What was added counts, unless the update was skipped."""
        if sound:
            self._sums = [a + b for a, b in zip(self._sums, self._this, strict=True)]
            self._sound += 1
        self._this = [0.0, 0]
        now = time.perf_counter()
        self._steps.append(now - self._step_began)
        self._step_began = now

    def close(self) -> dict[str, Any]:
        """The window's line of metrics, the same on every worker.

        Loss and error are over the iterations that made an update (0 if there is none); the times
        of a step are means over workers of their median and 90th percentile in this window.
        """
        job, workers = self._job, self._job.comm.world_size
        spent = [job.watch.seconds[phase] - self._seconds[phase] for phase in PHASES]
        mine = [*map(float, self._sums), *quantiles(self._steps), *spent]
        loss, wrong, p50, p90, *phases = sum_over_workers(job.comm, mine)
        elapsed = time.perf_counter() - self._began
        return {
            "iteration": job.iteration,
            "epoch": job.progress,
            "eta": job.optimizer.param_groups[0]["lr"],
            "loss": loss / max(self._sound, 1),
            "train_error": wrong / max(self._sound * job.config.minibatch, 1),
            "skipped": job.guard.skipped,
            "images_per_second": len(self._steps) * job.config.minibatch / elapsed,
            "step_p50_seconds": p50 / workers,
            "step_p90_seconds": p90 / workers,
            **{f"{phase}_seconds": s / workers for phase, s in zip(PHASES, phases, strict=True)},
        }


def quantiles(seconds: Sequence[float]) -> tuple[float, float]:
    """The median and the 90th percentile, each one of the values."""
    ordered = sorted(seconds)
    return ordered[(len(ordered) - 1) // 2], ordered[(len(ordered) - 1) * 9 // 10]


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
    (bad_images,) = sum_over_workers(job.comm, [sum(job.feed.bad.values())])
    return {
        **job.last_test,
        "bad_images": int(bad_images),
        "iterations": job.iteration,
        "images": job.images,
        "images_per_second": job.images / max(sum(seconds.values()), 1e-9),
        "skipped": job.guard.skipped,
        "workers": job.config.workers,
        "minibatch": job.config.minibatch,
        "seed": job.config.seed,
        "training_seconds": sum(seconds.values()),
        "elapsed_seconds": elapsed,
        "phase_seconds": seconds,
        "traffic_images": job.images - job.images_before,
        "node_sizes": torch.bincount(every[:, 0].long()).tolist(),
        "sent_bytes": {kind: every[:, i].tolist() for i, kind in enumerate(sent, start=1)},
        "algo": job.config.algo,
        "buckets": statistics["buckets"],
        "bucket_bytes": statistics["bucket_bytes"],
        "largest_bucket_bytes": statistics["largest_bucket_bytes"],
        "gradient_bytes": sum(p.nbytes for p in job.model.module.parameters()),
        "plan": _plan(job),
    }


def _plan(job: Job) -> str:
    """What "auto" made of the largest message, and why; nothing where no choice was made."""
    size = job.model.statistics()["largest_bucket_bytes"]
    if job.config.algo != "auto" or not size:
        return ""
    wire = HALF[job.config.wire_dtype] or torch.float32
    return str(job.comm.explain(size, str(wire).removeprefix("torch.")))
