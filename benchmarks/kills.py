"""How long survivors take to hear of a rank that was killed.

    python -m benchmarks.kills [--cycles 200] [--ranks 4] [--nodes 2] [--backend hier|shrink|gloo]

Each cycle forks the ranks, lets them run allreduces of 32 B, 20 KB and 1.2 MB in a loop, kills one
at a random moment, and takes the time until each survivor has its error. Prints the median and the
99th percentile of the last survivor's time, and how many survivors named the dead rank. With
"shrink" it takes the time until each has a sum of all survivors, in a communicator of their own.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from allreduce.communicator.communicator import Communicator
from allreduce.errors import Error
from allreduce.rendezvous.store import FileStore

_COUNTS = (8, 5000, 300_000)
_DEADLINE = 60.0  # seconds for each step of a cycle


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What one survivor heard."""

    seconds: float  # since the kill
    culprit: int  # the rank that its error names; -1 for none
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cycle:
    """One kill."""

    victim: int
    heard: list[Heard]  # of each survivor


def _communicator(folder: Path, rank: int, ranks: int, nodes: int) -> Communicator:
    return Communicator.from_store(
        FileStore(folder, _DEADLINE), rank, ranks, nodes=nodes, timeout=_DEADLINE, measure=False
    )


def _calls(comm: Communicator) -> Iterator[None]:
    arrays = [np.ones(count, np.float32) for count in _COUNTS]
    while True:
        for x in arrays:
            comm.allreduce(x, "max")
        yield


def _hier(folder: Path, rank: int, ranks: int, nodes: int) -> Iterator[None]:
    return _calls(_communicator(folder, rank, ranks, nodes))


def _shrink(folder: Path, rank: int, ranks: int, nodes: int) -> Iterator[None]:
    comm = _communicator(folder, rank, ranks, nodes)
    try:
        yield from _calls(comm)
    except Error:
        x = np.ones(_COUNTS[1], np.float32)
        comm.shrink().allreduce(x)
        if x.tolist() != [ranks - 1] * x.size:
            raise AssertionError(f"a sum of {x}") from None
        raise


def _gloo(folder: Path, rank: int, ranks: int, _nodes: int) -> Iterator[None]:
    import torch
    import torch.distributed as dist

    store = dist.FileStore(str(folder / "gloo"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    tensors = [torch.ones(count) for count in _COUNTS]
    while True:
        for x in tensors:
            dist.all_reduce(x, dist.ReduceOp.MAX)
        yield


BACKENDS: dict[str, Callable[[Path, int, int, int], Iterator[None]]] = {
    "hier": _hier,
    "shrink": _shrink,
    "gloo": _gloo,
}


def _rank_main(calls: Iterator[None], says: int) -> None:
    """Call until an error comes; say when it runs, and when it has ended."""
    try:
        for i, _ in enumerate(calls):
            if i == 2:
                os.write(says, b"running\n")
    except (Error, RuntimeError) as error:
        at = time.monotonic()
        text = " ".join(str(error).split())[:400]
        os.write(says, f"{at} {getattr(error, 'rank', -1)} {text}\n".encode())


@contextmanager
def _forked(count: int, main: Callable[[int, int], None]) -> Iterator[tuple[list[int], list[int]]]:
    """Run `main(rank, pipe)` in processes; yields their ids and the ends to read from."""
    pids, ends = [], []
    try:
        for rank in range(count):
            reads, writes = os.pipe()
            pid = os.fork()
            if pid == 0:
                try:
                    main(rank, writes)
                finally:
                    os._exit(0)
            os.close(writes)
            pids.append(pid)
            ends.append(reads)
        yield pids, ends
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)  # a zombie takes it too
            os.waitpid(pid, 0)
        for end in ends:
            os.close(end)


def _line(end: int) -> str:
    deadline = time.monotonic() + _DEADLINE
    text = b""
    while not text.endswith(b"\n"):
        if not select.select([end], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError(f"a rank says nothing for {_DEADLINE:g} s")
        some = os.read(end, 1)
        if not some:
            raise RuntimeError("a rank has ended in silence")
        text += some
    return text.decode().strip()


def cycle(ranks: int, nodes: int, backend: str, dice: random.Random) -> Cycle:
    """Start a group, kill one of its ranks, and hear the others."""
    victim = dice.randrange(ranks)
    with tempfile.TemporaryDirectory() as folder:

        def main(rank: int, says: int) -> None:
            _rank_main(BACKENDS[backend](Path(folder), rank, ranks, nodes), says)

        with _forked(ranks, main) as (pids, ends):
            for end in ends:
                assert _line(end) == "running"
            time.sleep(dice.random() * 0.05)
            at = time.monotonic()
            os.kill(pids[victim], signal.SIGKILL)
            heard = []
            for rank, end in enumerate(ends):
                if rank != victim:
                    when, culprit, text = _line(end).split(" ", 2)
                    seconds = float(when) - at
                    heard.append(Heard(seconds=seconds, culprit=int(culprit), text=text))
    return Cycle(victim=victim, heard=heard)


def last_heard(cycles: list[Cycle]) -> Any:
    """Return the milliseconds until the last survivor of each cycle knew, in order."""
    return np.sort([1e3 * max(h.seconds for h in c.heard) for c in cycles])


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--backend", choices=BACKENDS, default="hier")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.backend == "gloo":
        import torch.distributed  # noqa: F401 before the forks, once for all
    dice = random.Random(options.seed)
    before = os.getloadavg()[0]
    cycles = [
        cycle(options.ranks, options.nodes, options.backend, dice) for _ in range(options.cycles)
    ]
    ms = last_heard(cycles)
    outcome = "had a sum of all survivors" if options.backend == "shrink" else "knew"
    right = sum(h.culprit == c.victim for c in cycles for h in c.heard)
    sys.stdout.write(
        f"{options.backend}: {len(cycles)} kills of one rank of {options.ranks} on {options.nodes} "
        f"nodes; until the last survivor {outcome}: p50 {np.quantile(ms, 0.5):.1f} ms, "
        f"p90 {np.quantile(ms, 0.9):.1f} ms, p99 {np.quantile(ms, 0.99):.1f} ms, "
        f"longest {ms[-1]:.1f} ms; the dead rank was named by {right} of "
        f"{sum(len(c.heard) for c in cycles)} survivors; load {before:.1f} to "
        f"{os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores\n"
    )


if __name__ == "__main__":
    main()
