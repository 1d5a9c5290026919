"""Ends while a daemon thread is inside a collective that never completes."""

import os
import threading
import time

import numpy as np
import torch
import torch.distributed as dist
from harness import FOLDER, RANK, WORLD_SIZE, join

import allreduce
from allreduce.rendezvous.store import FileStore

way = os.environ["WAY"]
if way.startswith("numpy"):
    store = FileStore(FOLDER / "store", 30.0)
    comm = allreduce.Communicator.from_store(store, RANK, WORLD_SIZE, measure=False)
else:
    join()

calls = {
    "numpy": lambda: comm.allreduce(np.ones(10)),
    "numpy work": lambda: comm.allreduce(np.ones(10), async_op=True).wait(),
    "torch": lambda: dist.all_reduce(torch.ones(10)),
    "torch work": lambda: dist.all_reduce(torch.ones(10), async_op=True).wait(),
    "torch loop": lambda: [dist.all_reduce(torch.ones(10)) for _ in range(1_000_000)],
}


def main() -> None:
    calls[way]()


threads = [threading.Thread(target=main, daemon=True) for _ in range(1 if "loop" in way else 2)]
if RANK == 0 or "loop" in way:
    for thread in threads:
        thread.start()
    time.sleep(0.5)
(FOLDER / f"inside{RANK}").touch()
while len(list(FOLDER.glob("inside*"))) < WORLD_SIZE:
    time.sleep(0.01)
print("leaving", flush=True)
