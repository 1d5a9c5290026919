"""One rank of a training job whose steps are timed: with our reducer and with stock DDP.

Started by `run_job`, one process per rank; rank 0 writes the times as JSON. All ways train replicas
of one model in the same processes, turn by turn, so that they meet the same machine. Next to each
step runs the same replica's step without reductions (`no_sync`): two replicas of one model differ
by several percent in speed, by the pages that their weights lie on, which is more than a reduction
exposes. Then the same reductions run once more, alone: what they take where nothing else computes.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel as StockDDP

from allreduce.commands.local_processes import LocalProcesses
from allreduce.commands.parent_death import die_with_parent
from allreduce.torch import DistributedDataParallel
from trainer.model.resnet import build_model

BUCKETS_MB = (1, 5, 25, 100)  # that stock DDP on Gloo chooses from
_DEADLINE = 400  # seconds
_WARM_UP = 4  # steps: stock DDP makes its buckets anew after the first, ours after the third
_TRIAL_WARM_UP, _TRIAL = 2, 2  # steps with each of BUCKETS_MB


@dataclass(slots=True, kw_only=True)
class Times:
    """Seconds by way, barrier to barrier, round by round.

    steps: of a step.
    free: of a step of the same replica without reductions.
    alone: of a step's reductions without its step.
    buckets: median seconds of a step of stock DDP on Gloo by MB of a bucket; stock DDP took the
    best one, `bucket_mb`.
    """

    steps: dict[str, list[float]] = field(default_factory=dict)
    free: dict[str, list[float]] = field(default_factory=dict)
    alone: dict[str, list[float]] = field(default_factory=dict)
    buckets: dict[str, float] = field(default_factory=dict)
    bucket_mb: int = 0


def run_job(
    ranks: int, *, model: str, images: int, rounds: int, buckets_mb: Sequence[int] = BUCKETS_MB
) -> Times:
    """Run a job on one node.

    Args:
        images: per rank and step, 32 x 32 of three colours.
        buckets_mb: of stock DDP, to choose from; ours chooses by itself.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "times.json")
        command = [sys.executable, "-m", "benchmarks.harness.training", folder, str(ranks)]
        options = [model, str(images), str(rounds), ",".join(map(str, buckets_mb))]
        options.append(str(os.getpid()))
        env = os.environ | {"OMP_NUM_THREADS": "1", "ALLREDUCE_NODES": "1"}
        root = Path(__file__).resolve().parents[2]
        with LocalProcesses() as processes:
            for rank in range(ranks):
                processes.start([*command, str(rank), *options], env, cwd=root)
            processes.wait(_DEADLINE)
            codes = processes.codes()
        if any(code != 0 for code in codes):
            raise RuntimeError(f"a rank of the training job failed or is late: exit {codes}")
        return Times(**json.loads(result.read_text()))


class Job:
    """One rank's replicas, data and groups."""

    def __init__(self, model: str, images: int) -> None:
        self._model = model
        self._gloo = dist.new_group(backend="gloo")
        self._x = torch.randn(images, 3, 32, 32)
        self._y = torch.randint(10, (images,))

    def choose_bucket(self, sizes: Sequence[int]) -> dict[int, float]:
        """Return the median seconds of a step of stock DDP on Gloo, by MB of a bucket."""
        found = {}
        for megabytes in sizes:  # one replica at a time: memory
            step = self._step(self._stock(megabytes, self._gloo))
            taken = [self.time(step) for _ in range(_TRIAL_WARM_UP + _TRIAL)]
            seconds = torch.tensor([statistics.median(taken[_TRIAL_WARM_UP:])])
            dist.all_reduce(seconds)
            found[megabytes] = float(seconds) / dist.get_world_size()
        return found

    def run(self, bucket_mb: int, rounds: int) -> Times:
        """Time every way's step, with reductions and without, and its reductions alone."""
        replicas = {
            "hier": DistributedDataParallel(self._fresh(), bucket_bytes="auto"),
            "stock on hier": self._stock(bucket_mb, None),
            "stock on gloo": self._stock(bucket_mb, self._gloo),
        }
        steps = {way: self._step(replica) for way, replica in replicas.items()}
        for _ in range(_WARM_UP):
            for way, step in steps.items():
                step()
                with replicas[way].no_sync():
                    step()
        alone = {way: self._reductions(replica, way) for way, replica in replicas.items()}
        times = Times(bucket_mb=bucket_mb)
        for _ in range(rounds):
            for way, step in steps.items():
                times.steps.setdefault(way, []).append(self.time(step))
                with replicas[way].no_sync():
                    times.free.setdefault(way, []).append(self.time(step))
                times.alone.setdefault(way, []).append(self.time(alone[way]))
        return times

    def time(self, call: Callable[[], None]) -> float:
        """Return the seconds of a call on all ranks, barrier to barrier."""
        dist.barrier()
        begin = time.perf_counter()
        call()
        dist.barrier()
        return time.perf_counter() - begin

    def _fresh(self) -> nn.Module:
        torch.manual_seed(0)
        return build_model(self._model, num_classes=10)

    def _stock(self, bucket_mb: int, group: dist.ProcessGroup | None) -> StockDDP:
        return StockDDP(
            self._fresh(),
            process_group=group,
            gradient_as_bucket_view=True,
            bucket_cap_mb=bucket_mb,
            broadcast_buffers=False,
        )

    def _step(self, model: nn.Module) -> Callable[[], None]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)

        def step() -> None:
            optimizer.zero_grad()
            F.cross_entropy(model(self._x), self._y).backward()
            optimizer.step()

        return step

    def _reductions(
        self, replica: DistributedDataParallel | StockDDP, way: str
    ) -> Callable[[], None]:
        """Return a call of the reductions of a step, one bucket after the other."""
        if isinstance(replica, DistributedDataParallel):
            reducer = replica._reducer
            flats = [bucket.flat for bucket in reducer._buckets] if reducer else []
            comm = reducer._comm if reducer else None

            def ours() -> None:
                for work in [comm.allreduce(flat, async_op=True) for flat in flats if comm]:
                    work.wait()

            return ours
        group = self._gloo if way == "stock on gloo" else None
        tensors = [torch.zeros(nbytes // 4) for nbytes in _bucket_sizes(replica)]

        def stock() -> None:
            for work in [dist.all_reduce(t, group=group, async_op=True) for t in tensors]:
                work.wait()

        return stock


def _bucket_sizes(replica: StockDDP) -> Iterator[int]:
    """Yield the bytes of each bucket of stock DDP; it makes them anew after the first step."""
    logged = replica._get_ddp_logging_data()
    text = logged.get("rebuilt_bucket_sizes") or logged["bucket_sizes"]
    return (int(part) for part in text.split(", "))


def main() -> None:
    """Be one rank."""
    folder, ranks, rank, model, images, rounds, buckets_mb, parent = sys.argv[1:]
    die_with_parent(int(parent))
    torch.set_num_threads(1)
    dist.init_process_group(
        "hier", init_method=f"file://{folder}/store", rank=int(rank), world_size=int(ranks)
    )
    job = Job(model, int(images))
    sizes = [int(size) for size in buckets_mb.split(",")]
    tried = job.choose_bucket(sizes) if len(sizes) > 1 else dict.fromkeys(sizes, 0.0)
    times = job.run(min(tried, key=tried.__getitem__), int(rounds))
    times.buckets = {str(size): seconds for size, seconds in tried.items()}
    if int(rank) == 0:
        Path(folder, "times.json").write_text(json.dumps(asdict(times)))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
