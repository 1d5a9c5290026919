"""Ends while callbacks of futures are under way: the interpreter must not crash."""

import time

import torch
import torch.distributed as dist
from harness import join

join()
for _ in range(30):
    future = dist.all_reduce(torch.ones(10), async_op=True).get_future()
    future.then(lambda _: time.sleep(0.01))
dist.barrier()
print("leaving")
