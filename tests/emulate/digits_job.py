"""Some ranks of a training of a tiny network on the shipped digits, forked after torch's import.

    python digits_job.py RANKS_OF_THIS_HOST STEPS

The environment says which host this is: python -m allreduce.emulate sets NODE_RANK and the like.
Each rank checks that its parameters have the bits of rank 0's at the end; rank 0 prints the losses.
"""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy

from allreduce.torch import DistributedDataParallel
from trainer.data import Source, open_dataset

_BATCH = 4


def train(rank: int, world_size: int, local_size: int, steps: int) -> None:
    """Be one rank."""
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank % local_size),
        "LOCAL_WORLD_SIZE": str(local_size),
    }
    dist.init_process_group("hier")
    torch.manual_seed(rank)  # rank 0's parameters must count
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(1024, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10)
    )
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    digits = open_dataset(Source(name="digits"))
    losses = []
    for step in range(steps):
        first = (step * world_size + rank) * _BATCH
        images, labels = digits.train_batch(
            (torch.arange(first, first + _BATCH) % 1536).numpy(), seed=0, epoch=0
        )
        optimizer.zero_grad()
        loss = cross_entropy(parallel(images / 255), labels)
        loss.backward()
        optimizer.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean, dist.ReduceOp.AVG)
        losses.append(mean.item())
    mine = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    zeros = mine.clone()
    dist.broadcast(zeros, 0)
    assert torch.equal(mine, zeros), f"rank {rank} has other parameters than rank 0"
    dist.barrier()
    if rank == 0:
        print(world_size, *losses, flush=True)
    dist.destroy_process_group()


def main() -> int:
    """Fork the ranks of this host; return 1 if one failed."""
    local_size, steps = int(sys.argv[1]), int(sys.argv[2])
    host, hosts = int(os.environ["NODE_RANK"]), int(os.environ["NNODES"])
    torch.set_num_threads(1)
    children = []
    for local_rank in range(local_size):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                train(host * local_size + local_rank, hosts * local_size, local_size, steps)
                status = 0
            except BaseException as error:  # a traceback of each of many ranks would hide it
                print(f"host {host}, rank {local_rank} there: {error}", file=sys.stderr)
            finally:
                sys.stdout.flush()
                os._exit(status)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    return int(any(statuses))


if __name__ == "__main__":
    sys.exit(main())
