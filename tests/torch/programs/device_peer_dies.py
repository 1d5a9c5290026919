"""Rank 1 dies within a collective on a device: no stream hangs, and the others get its name."""

import os
import time

import cpu_device
import torch
import torch.distributed as dist
from harness import RANK, join, raises

import allreduce

Gate = cpu_device.load().Gate
DEVICE = torch.device("privateuseone", 0)

join()
x = torch.ones(1_000_000).to(DEVICE)
dist.all_reduce(x)
x.cpu()
dist.barrier()
if RANK == 1:
    gate = Gate()  # its copies never begin
    dist.all_reduce(x, async_op=True)
    time.sleep(0.5)
    os._exit(3)
begun = time.monotonic()
works = [dist.all_reduce(x, async_op=True) for _ in range(3)]
x.cpu()  # the stream goes on


def call_until_it_fails() -> None:
    while time.monotonic() - begun < 20:
        dist.all_reduce(x)
        torch.accelerator.synchronize()


def wait_for_the_first() -> None:
    while not works[0].is_completed():  # its failure may be known a little later than the group's
        time.sleep(0.005)
    works[0].wait()


# The first says why; what is called later is told that the group has failed, and why.
for kind, call in [
    (allreduce.AbortedError, call_until_it_fails),
    (allreduce.PeerError, wait_for_the_first),
]:
    message = raises(kind, call)
    assert "rank 1" in message, message
seconds = time.monotonic() - begun
assert seconds < 15, seconds
print("all raised")
