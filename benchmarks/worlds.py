"""Worlds of torch processes for benchmarks: this process is rank 0, the others obey it.

Every rank joins two process groups, `hier` and `gloo`, so that both are measured in one run, turn
by turn, on the same machine in the same state.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import torch
import torch.distributed as dist

import allreduce.torch  # registers hier where the package is not installed
from allreduce import _C
from allreduce._arrays import memory_of

BACKENDS = ("hier", "gloo")
_TIMEOUT = 120  # seconds


class World:
    """`size` ranks; as many nodes as asked for, simulated on this machine."""

    def __init__(self, size: int, nodes: int) -> None:
        self.size = size
        self._folder = tempfile.TemporaryDirectory()
        store = Path(self._folder.name) / "store"
        os.environ["ALLREDUCE_NODES"] = str(nodes)
        command = [sys.executable, "-m", "benchmarks.worlds", str(store), str(size)]
        root = Path(__file__).resolve().parent.parent
        environ = os.environ | {"OMP_NUM_THREADS": "1", "ALLREDUCE_NODES": str(nodes)}
        self._peers = [
            subprocess.Popen([*command, str(rank)], stdin=subprocess.PIPE, cwd=root, env=environ)
            for rank in range(1, size)
        ]
        self._ranks = Ranks(str(store), 0, size)

    def time(self, backend: str, count: int, dtype: str, calls: int) -> float:
        """Return seconds per allreduce of `count` elements, the mean of `calls` calls in a row.

        backend: "hier" or "gloo" through torch.distributed, or "core": hier's own, without it.
        """
        for peer in self._peers:
            assert peer.stdin is not None
            peer.stdin.write(f"{backend} {count} {dtype} {calls}\n".encode())
            peer.stdin.flush()
        return self._ranks.run(backend, count, dtype, calls)

    def __enter__(self) -> World:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for peer in self._peers:
            assert peer.stdin is not None
            peer.stdin.close()
        self._ranks.close()
        deadline = time.monotonic() + _TIMEOUT
        while any(peer.poll() is None for peer in self._peers) and time.monotonic() < deadline:
            time.sleep(0.01)
        for peer in self._peers:
            peer.kill()
            peer.wait()
        self._folder.cleanup()


class Ranks:
    """One rank's membership in both groups."""

    def __init__(self, store: str, rank: int, size: int) -> None:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
        self._groups = {name: dist.new_group(backend=name) for name in BACKENDS}

    def run(self, backend: str, count: int, dtype: str, calls: int) -> float:
        """Return seconds per call."""
        tensor = torch.zeros(count, dtype=getattr(torch, dtype))
        call = self._call(backend, tensor)
        call()  # warms up, and brings the ranks together
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - begin) / calls

    def _call(self, backend: str, tensor: torch.Tensor) -> Callable[[], object]:
        if backend != "core":
            return functools.partial(dist.all_reduce, tensor, group=self._groups[backend])
        comm = allreduce.torch.communicator(self._groups["hier"])
        memory = memory_of(tensor, "tensor", comm.rank)
        call = comm._call(_C.Collective.allreduce, memory)
        return functools.partial(comm._group.run, **call)

    def close(self) -> None:
        """Leave both groups."""
        dist.destroy_process_group()


def main() -> None:
    """Obey rank 0, which writes a line per measurement, until it closes the pipe."""
    store, size, rank = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    ranks = Ranks(store, rank, size)
    for line in sys.stdin:
        backend, count, dtype, calls = line.split()
        ranks.run(backend, int(count), dtype, int(calls))
    ranks.close()


if __name__ == "__main__":
    main()
