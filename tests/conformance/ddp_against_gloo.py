"""A rank that trains two copies of a network with stock DDP, one on hier and one on gloo.

Prints how far their weights are apart at the end, as a fraction of how far they have moved.
"""

from __future__ import annotations

import argparse
import os
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import allreduce.torch  # noqa: F401 (registers hier, installed or not)

ITERATIONS = 20
BATCH = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--ranks", type=int, required=True)
    options = parser.parse_args()
    store = dist.FileStore(options.store, options.ranks)
    timeout = timedelta(seconds=30)
    dist.init_process_group(
        "hier", store=store, rank=options.rank, world_size=options.ranks, timeout=timeout
    )
    gloo = dist.new_group(backend="gloo", timeout=timeout)
    for dtype in (torch.float32, torch.float64):
        ours, theirs = train(dist.group.WORLD, dtype), train(gloo, dtype)
        moved = theirs - weights(network(dtype))
        print(f"{dtype} {float((ours - theirs).norm() / moved.norm()):.3e}")
    dist.destroy_process_group()


def network(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(1)
    layers = [nn.Linear(8, 33), nn.Tanh(), nn.Linear(33, 57), nn.Tanh(), nn.Linear(57, 4)]
    return nn.Sequential(*layers).to(dtype)


def train(group: dist.ProcessGroup | None, dtype: torch.dtype) -> Tensor:
    """The weights after all iterations; each rank has minibatches of its own."""
    model = DistributedDataParallel(network(dtype), process_group=group, bucket_cap_mb=0.005)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    data = torch.Generator().manual_seed(100 + dist.get_rank())
    for _ in range(ITERATIONS):
        x = torch.randn(BATCH, 8, dtype=dtype, generator=data)
        target = torch.randint(4, (BATCH,), generator=data)
        optimizer.zero_grad()
        F.cross_entropy(model(x), target).backward()
        optimizer.step()
    return weights(model)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().double() for p in model.parameters()])


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
