"""Rank 1 dies; every way of waiting for it on rank 0 raises the same typed error."""

import os

import torch
import torch.distributed as dist
from harness import RANK, join, raises
from torch import nn
from torch.nn.parallel import DistributedDataParallel as StockDDP

import allreduce
from allreduce.torch import DistributedDataParallel as OurDDP

join()
blocking, waiting, future, ours, stock = (dist.new_group(backend="hier") for _ in range(5))
models = [
    OurDDP(nn.Linear(2, 2), process_group=ours),
    StockDDP(nn.Linear(2, 2), process_group=stock),
]
dist.barrier()
if RANK == 1:
    os._exit(3)
x = torch.ones(1000)
calls = [
    lambda: dist.all_reduce(x, group=blocking),
    lambda: dist.all_reduce(x, group=waiting, async_op=True).wait(),
    lambda: dist.all_reduce(x, group=future, async_op=True).get_future().wait(),
    lambda: models[0](torch.ones(1, 2)).sum().backward(),
    lambda: models[1](torch.ones(1, 2)).sum().backward(),
]
for number, call in enumerate(calls):
    message = raises(allreduce.PeerError, call)
    assert "rank 1" in message, (number, message)
print("all raised")
