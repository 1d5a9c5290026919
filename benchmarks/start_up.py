"""How long process groups take to begin and to end, beside Gloo.

    python -m benchmarks.start_up [--ranks 2 4 8] [--rounds 5]

Each round takes new processes, forked from one that has imported everything, for each backend by
turns. When all are there, they make the default group and call it once. Then they make nine more
groups, one after the other: each is called once, and destroyed. Prints the median over rounds of
the slowest rank, in milliseconds.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from allreduce.torch.backend.load import load

GROUPS = 9
_IMPORTED_AT_INIT = ("allreduce.torch.backend.process_group", "allreduce.rendezvous.on_demand")
COLUMNS = ("init_process_group", "its first call", "new_group and first call", "destroy")


def _ms(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return (time.perf_counter() - begun) * 1e3


def _times(backend: str, rank: int, world_size: int, port: int) -> list[float]:
    """Return the milliseconds of one rank, for each column."""
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    x = torch.ones(16)
    store.set(f"forked/{rank}", b"")
    store.wait([f"forked/{r}" for r in range(world_size)])
    init = _ms(
        lambda: dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    )
    first = _ms(lambda: dist.all_reduce(x))
    groups: list[Any] = []

    def make() -> None:
        groups.append(dist.new_group(backend=backend))
        dist.all_reduce(x, group=groups[-1])

    made, destroyed = [], []
    for _ in range(GROUPS):
        dist.barrier()
        made.append(_ms(make))
        dist.barrier()
        destroyed.append(_ms(lambda: dist.destroy_process_group(groups.pop())))
    dist.barrier()
    return [init, first, statistics.median(made), statistics.median(destroyed)]


def slowest(backend: str, world_size: int) -> list[float]:
    """Return the milliseconds of the slowest of new ranks, for each column."""
    load()
    for name in _IMPORTED_AT_INIT:  # so that no rank has to
        importlib.import_module(name)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = [(backend, rank, world_size, store.port) for rank in range(world_size)]
    with multiprocessing.get_context("fork").Pool(world_size, maxtasksperchild=1) as pool:
        return [max(column) for column in zip(*pool.starmap(_times, ranks, 1), strict=True)]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print("| ms | ranks |", " | ".join(COLUMNS), "|")
    print("|---" * (2 + len(COLUMNS)) + "|")
    for ranks in options.ranks:
        rounds = [{b: slowest(b, ranks) for b in ("hier", "gloo")} for _ in range(options.rounds)]
        for backend in rounds[0]:
            columns = zip(*(times[backend] for times in rounds), strict=True)
            medians = (f"{statistics.median(column):.1f}" for column in columns)
            print(f"| {backend} | {ranks} |", " | ".join(medians), "|")


if __name__ == "__main__":
    main()
