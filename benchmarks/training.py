"""One rank of a training job whose steps are timed: with our reducer, stock DDP, and none.

Started by `Job` of this module, one process per rank; rank 0 writes the times as JSON. All ways
train replicas of one model in the same processes, turn by turn, so that they meet the same machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as StockDDP

from allreduce.torch import DistributedDataParallel
from trainer.model import build_model

WAYS = ("none", "hier", "stock on hier", "stock on gloo")
_DEADLINE = 400  # seconds
_WARM_UP = 5  # steps: stock DDP makes its buckets anew after the first, ours after the third


def run_job(ranks: int, *, model: str, images: int, rounds: int, bucket_mb: int) -> dict:
    """Run a job on one node and return {way: [seconds of each step]}, barrier to barrier.

    Args:
        images: per rank and step, 32 x 32 of three colours.
        bucket_mb: of stock DDP; ours chooses by itself.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "times.json")
        command = [sys.executable, "-m", "benchmarks.training", folder, str(ranks)]
        options = [model, str(images), str(rounds), str(bucket_mb)]
        env = os.environ | {"OMP_NUM_THREADS": "1", "ALLREDUCE_NODES": "1"}
        root = Path(__file__).resolve().parent.parent
        peers = [
            subprocess.Popen([*command, str(rank), *options], cwd=root, env=env)
            for rank in range(ranks)
        ]
        try:
            codes = [peer.wait(_DEADLINE) for peer in peers]
        finally:
            for peer in peers:
                peer.kill()
        if any(codes):
            raise RuntimeError(f"a rank of the training job failed: exit {codes}")
        times: dict = json.loads(result.read_text())
        return times


def _replicas(model: str, bucket_mb: int, gloo: dist.ProcessGroup) -> dict[str, nn.Module]:
    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return build_model(model, num_classes=10)

    stock = {
        "gradient_as_bucket_view": True,
        "bucket_cap_mb": bucket_mb,
        "broadcast_buffers": False,
    }
    return {
        "none": fresh(),
        "hier": DistributedDataParallel(fresh(), bucket_bytes="auto"),
        "stock on hier": StockDDP(fresh(), **stock),
        "stock on gloo": StockDDP(fresh(), process_group=gloo, **stock),
    }


def _step(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def main() -> None:
    """Be one rank."""
    folder, ranks, rank, model, images, rounds, bucket_mb = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group(
        "hier", init_method=f"file://{folder}/store", rank=int(rank), world_size=int(ranks)
    )
    gloo = dist.new_group(backend="gloo")
    x = torch.randn(int(images), 3, 32, 32)
    y = torch.randint(10, (int(images),))
    replicas = _replicas(model, int(bucket_mb), gloo)
    steps = {way: _step(replica, x, y) for way, replica in replicas.items()}
    times: dict[str, list[float]] = {way: [] for way in steps}
    for turn in range(_WARM_UP + int(rounds)):
        for way, step in steps.items():
            dist.barrier()
            begin = time.perf_counter()
            step()
            dist.barrier()
            if turn >= _WARM_UP:
                times[way].append(time.perf_counter() - begin)
    if int(rank) == 0:
        Path(folder, "times.json").write_text(json.dumps(times))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
