"""Rank 1 dies: the kernel that waits for it ends long before its deadline, and says who died."""

import os
import time

import host_fused
import torch
from harness import RANK, TIMEOUT, join, raises
from torch import nn

import allreduce
from allreduce.torch import ShardedSGD

host_fused.install()
join()
module = nn.Linear(30, 20)
optimizer = ShardedSGD(module.parameters(), lr=0.1, fused=True)
for turn in range(3):
    if turn == 2 and RANK == 1:
        os._exit(3)
    optimizer.zero_grad()
    module(torch.ones(2, 30)).sum().backward()
    begun = time.monotonic()
    optimizer.step()
waited = time.monotonic() - begun
assert waited < TIMEOUT.total_seconds() / 2, waited
for call in (optimizer.step, optimizer.state_dict):
    message = raises(allreduce.Error, call)
    assert "rank 1" in message, message
print("all raised")
