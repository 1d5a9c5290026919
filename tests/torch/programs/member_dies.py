"""A member of a process group dies; the others go on without it, and another process joins them.

Rank 1 of ranks 0 to 2 dies, and rank 3 comes then. Prints how long a sum took from the death on.
"""

import os
import time

import torch
import torch.distributed as dist
from harness import FOLDER, RANK, TIMEOUT, raises

import allreduce

VICTIM, NEWCOMER = 1, 3
store = dist.FileStore(str(FOLDER / "handles"), 4)


def become(members: list[int], number: int) -> None:
    store.set(f"{number}/{RANK}", dist._get_reconfigure_handle())
    handles = [store.get(f"{number}/{rank}").decode() for rank in members]
    dist._reconfigure(number, handles).wait()


def assert_sums(members: list[int]) -> None:
    x = torch.full((1000,), RANK + 1.0)
    dist.all_reduce(x)
    assert x.unique().tolist() == [sum(rank + 1.0 for rank in members)]


dist.init_process_group(
    "hier",
    init_method=f"file://{FOLDER}/world",
    rank=RANK,
    world_size=4,
    timeout=TIMEOUT,
    enable_reconfigure=True,
)
if RANK != NEWCOMER:
    become([0, 1, 2], 1)
    assert_sums([0, 1, 2])
    if RANK == VICTIM:
        store.set("death", str(time.monotonic()))
        os._exit(3)
    x = torch.ones(1000)
    said = raises(allreduce.PeerError, lambda: [dist.all_reduce(x) for _ in range(100_000)])
    assert "rank 1" in said, said
    become([0, 2], 2)
    assert_sums([0, 2])
    print(f"{1e3 * (time.monotonic() - float(store.get('death'))):.0f} ms")
    store.set(f"alone{RANK}", "")
store.wait(["alone0", "alone2"])
become([0, 2, NEWCOMER], 3)
assert_sums([0, 2, NEWCOMER])
print("three again")
dist.destroy_process_group()
