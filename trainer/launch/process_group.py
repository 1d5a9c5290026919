"""One worker's process: compute threads, memory, and its place in the group."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store

import allreduce.torch
from trainer.config.options import Config
from trainer.config.threads import thread_count
from trainer.launch.rendezvous import meet

if TYPE_CHECKING:
    from allreduce import Communicator

__all__ = ["join_group", "leave_group", "sum_over_workers"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def join_group(config: Config, store: Store | None = None) -> Communicator:
    """Readies this process and joins the job that the environment describes (RANK and so on).

    store: where all meet, if that is known.

    Raises what `allreduce` raises when a worker does not come or the rendezvous cannot be reached.
    """
    if config.nodes:
        os.environ["ALLREDUCE_NODES"] = str(config.nodes)  # this machine poses as several nodes
    local_workers = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    torch.set_num_threads(thread_count(config.threads, local_workers))
    _keep_freed_memory()
    patience, store = timedelta(seconds=config.timeout), store or meet(config)
    if store is None:
        dist.init_process_group("hier", timeout=patience)
    else:
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.init_process_group(
            "hier", store=store, rank=rank, world_size=world_size, timeout=patience
        )
    return allreduce.torch.communicator()


def leave_group() -> None:
    """Leaves the group; every worker does, after its last collective call."""
    dist.destroy_process_group()


def sum_over_workers(comm: Communicator, values: Sequence[float | Tensor]) -> list[float]:
    """Each of `values` summed over all processes, in f64; every process calls it."""
    numbers = torch.tensor([float(value) for value in values], dtype=torch.float64)
    comm.allreduce(numbers, op="sum")
    return [float(number) for number in numbers]


def _keep_freed_memory() -> None:
    # An iteration allocates and frees the same activations again and again. By default glibc gives
    # them back to the system each time, and page faults cost about a tenth of the iteration.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
