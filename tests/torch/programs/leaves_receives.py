"""Destroys a group while receives wait that nobody sends for, and some that somebody does."""

import os
import time

import torch
import torch.distributed as dist
from harness import RANK, WORLD_SIZE, join, raises

import allreduce

join()
dist.barrier()
after, before = (RANK + 1) % WORLD_SIZE, (RANK - 1) % WORLD_SIZE
x, late, lost = torch.zeros(1 << 20), torch.zeros(10), torch.zeros(10)
works = [dist.irecv(x, before), dist.irecv(late, before, tag=1)]
unmatched = [dist.irecv(lost, before, tag=2)]
if os.environ.get("ANY_SOURCE"):
    unmatched.append(dist.irecv(torch.zeros(10), tag=3))
time.sleep(0.5 * RANK)
works += [dist.isend(torch.ones(1 << 20), after), dist.isend(torch.ones(10), after, tag=1)]
begin = time.monotonic()
dist.destroy_process_group()
seconds = time.monotonic() - begin
for work in works:
    work.wait()
assert x[-1].item() == late[-1].item() == 1.0
for work in unmatched:
    text = raises((allreduce.AbortedError, allreduce.PeerError), work.wait)
    assert "no rank sends it" in text, text
assert seconds < 15, seconds  # half of the group's timeout
print("destroyed")
