"""Section: a training step of ResNet-50: bare, with hooks and buckets on one rank, and with two."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.gpu.place import CPU
from benchmarks.gpu.rows import Rows
from benchmarks.gpu.training import WRAPPERS, Trainee, ours_alone
from benchmarks.gpu.worlds import WorldFailed, run_world

_LARGE = {"model": "resnet50", "batch": 256, "side": 224}
_SMALL = {"model": "resnet8", "batch": 8, "side": 32}
# QUOTED, images a second: NVIDIA's of one A100-80GB with AMP (DeepLearningExamples, resnet50v1.5).
_QUOTED = 2470
_OVERHEAD = 2.0  # percent
_WORLD_SECONDS = 50.0


def run(rows: Rows) -> None:
    """Bare and wrapped by turns, so that both meet the same clocks and the same heat."""
    task: Mapping[str, Any] = _SMALL if rows.small else _LARGE
    on = rows.place.on(CPU)
    steps, turns = (2, 2) if rows.quick else (5, 3) if rows.small else (15, 4)
    bare, wrapped, buckets = _alone(rows.place.device, task, steps, turns)
    name = f"{task['model']}, batch {task['batch']}"
    how = "bf16, channels last" if rows.place.gpu else "f32, channels last"
    against = f"{how}; beside {_QUOTED} of an A100-80GB, QUOTED"
    rows.judge(f"{name}, bare", bare, "images/s", on=on, at_least=_QUOTED, note=against)
    counted = f"{how}; buckets: {buckets}"
    rows.add(f"{name}, our DDP, 1 rank", wrapped, "images/s", on=on, note=counted)
    rows.check("our DDP, 1 rank: it reduces in buckets", buckets > 0, on=on, note=counted)
    if buckets > 0:  # else a network was compared with itself
        overhead = (bare / wrapped - 1) * 100
        note = f"hooks and buckets, no second rank; buckets: {buckets}"
        rows.judge("our DDP, 1 rank: overhead", overhead, "%", on=on, at_most=_OVERHEAD, note=note)
    half = {**task, "batch": task["batch"] // 2}
    for wrapper in list(WRAPPERS)[: 1 if rows.quick else None]:
        _two(rows, wrapper, half, steps, on)


def _alone(
    device: str, task: Mapping[str, Any], steps: int, turns: int
) -> tuple[float, float, int]:
    """Images a second without and with our DDP, medians over turns; buckets of the latter."""
    import allreduce.torch  # noqa: F401  (registers hier where it is not installed)

    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{Path(folder, 'store')}"
        dist.init_process_group("hier", init_method=store, rank=0, world_size=1)
        trainees = [Trainee(device, **task), Trainee(device, wrap=ours_alone, **task)]
        for trainee in trainees:
            trainee.warm_up()
        rates = [[t.images_per_second(steps) for t in trainees] for _ in range(turns)]
        counted = trainees[1].network.statistics()  # type: ignore[operator]
        dist.destroy_process_group()
    del trainees
    if device == "cuda":
        torch.cuda.empty_cache()  # the ranks of the next part need it
    bare, wrapped = (statistics.median(column) for column in zip(*rates, strict=True))
    return bare, wrapped, counted["buckets"] if counted["passes"] > 0 else 0


def _two(rows: Rows, wrapper: str, task: Mapping[str, Any], steps: int, on: str) -> None:
    """Two processes share the device and exchange gradients as two nodes do: by TCP."""
    name = f"{task['model']}, 2 processes x {task['batch']}, TCP, {wrapper} DDP on hier"
    spec = {"wrapper": wrapper, "task": dict(task), "steps": steps}
    env = {"ALLREDUCE_NODES": "2"}
    try:
        found = run_world(rows.place, 2, "train", spec, env, seconds=_WORLD_SECONDS)
    except WorldFailed as error:
        rows.absent(name, str(error))
        return
    rows.add(name, sum(one["images_per_second"] for one in found), "images/s", on=on)
    same = found[0]["digest"] == found[1]["digest"]
    rows.check(f"{wrapper} DDP: both ranks have the same weights", same, on=on)
