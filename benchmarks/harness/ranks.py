"""The ranks of a world of torch processes: each obeys the lines of its pipe, and answers.

    python -m benchmarks.harness.ranks FOLDER SIZE LOCAL  (ALLREDUCE_NODES: on how many nodes)

Every rank joins process groups of `hier` and Gloo, so that all are measured in the same processes,
turn by turn, on the same machine in the same state. Torch is imported once: the ranks are forks.
The protocol is that of peers/protocol.h; here a line may also be "explain BYTES" or "absent".
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

import allreduce.torch  # registers hier where the package is not installed
from allreduce import _C, Communicator
from allreduce.communicator.auto_choices import measure_once
from allreduce.rendezvous.store import FileStore
from benchmarks.harness.pipes import Pipes, answer, timed

_WARM_UP_BYTES = 1 << 20
_PERIOD = 7  # of the pattern that is summed: integers, small enough for bfloat16 at 16 ranks
_PERIODS = 8192  # in a part of a buffer that is filled or compared at once, in the cache
_SYMMETRIC_BYTES = 100 << 20


class Rank:
    """One rank's membership in all groups."""

    def __init__(self, folder: Path, rank: int, size: int, local: str) -> None:
        torch.set_num_threads(1)
        store = f"file://{folder / 'store'}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
        self.absent = ""
        self._size = size
        self._groups = {name: dist.new_group(backend=name) for name in ("hier", "gloo")}
        self._groups["gloo-cubic"] = self._gloo_with_cubic()
        self._comm = allreduce.torch.communicator(self._groups["hier"])
        if local != self._comm.layout.local:
            self._comm = Communicator.from_store(FileStore(folder / local), rank, size, local=local)
        measure_once(self._comm)  # as our DDP does
        self._private = torch.zeros(0, dtype=torch.uint8)
        self._symmetric: torch.Tensor | None = None

    def _gloo_with_cubic(self) -> dist.ProcessGroup:
        before = _congestion_of_sockets()
        os.environ["PEER_CONGESTION"] = "cubic"  # the preloaded library looks at each new socket
        group = dist.new_group(backend="gloo")
        del os.environ["PEER_CONGESTION"]
        new = {k: name for k, name in _congestion_of_sockets().items() if k not in before}
        if set(new.values()) != {"cubic"}:
            names = " and ".join(sorted(set(new.values())))
            self.absent = f"its sockets have {names}; run as root, with a C compiler"
        return group

    def measure(
        self, player: str, nbytes: int, dtype: str, op: str, warm_up: int, calls: int, check: bool
    ) -> bytes:
        """Return wrong elements, CPU seconds, and the seconds of each call."""
        tensor = self._buffer(player, nbytes).view(getattr(torch, dtype))
        wrong = self._wrong_sums(tensor, player, op) if check else 0
        self._calls(player, tensor[: _WARM_UP_BYTES // tensor.element_size()], op)(1)
        return answer(self._calls(player, tensor, op), warm_up, calls, wrong)

    def explain(self, nbytes: int) -> bytes:
        """Return what `algo="auto"` does between nodes."""
        return self._comm._group.choose(_C.Collective.allreduce, nbytes).encode()

    def _buffer(self, player: str, nbytes: int) -> torch.Tensor:
        if player == "core-sym":
            if self._symmetric is None:
                array = self._comm.symmetric_empty(_SYMMETRIC_BYTES, "uint8")
                self._symmetric = torch.from_numpy(array)
            return self._symmetric[:nbytes]
        if self._private.numel() != nbytes:
            self._private = torch.zeros(nbytes, dtype=torch.uint8)
        return self._private

    def _calls(
        self, player: str, tensor: torch.Tensor, op: str
    ) -> Callable[[int], Sequence[float] | np.ndarray]:
        name, _, algorithm = player.partition(":")
        algorithm = algorithm or "auto"
        if name.startswith("core"):  # in a loop of C++, as MPI's calls are in one of C
            return functools.partial(
                self._comm._group.time_allreduce, tensor.numpy(), op, algorithm
            )
        return functools.partial(timed, self._python_call(name, tensor, op))

    def _python_call(self, name: str, tensor: torch.Tensor, op: str) -> Callable[[], object]:
        if name == "numpy":
            return functools.partial(self._comm.allreduce, tensor.numpy(), op)
        kind = {"sum": dist.ReduceOp.SUM, "avg": dist.ReduceOp.AVG}[op]
        if name.endswith("-async"):
            group = self._groups[name.removesuffix("-async")]
            return lambda: dist.all_reduce(tensor, kind, group=group, async_op=True).wait()
        return functools.partial(dist.all_reduce, tensor, kind, group=self._groups[name])

    def _wrong_sums(self, tensor: torch.Tensor, player: str, op: str) -> int:
        size = self._size
        pattern = torch.arange(_PERIOD).repeat(_PERIODS)
        mine = (pattern + dist.get_rank()).to(tensor.dtype)
        want = (pattern * size + size * (size - 1) // 2).to(tensor.dtype)
        want = want / size if op == "avg" else want
        for part in tensor.split(len(pattern)):
            part.copy_(mine[: len(part)])
        self._calls(player, tensor, op)(1)
        parts = tensor.split(len(pattern))
        wrong = sum(int((part != want[: len(part)]).sum()) for part in parts)
        tensor.zero_()
        return wrong


def _congestion_of_sockets() -> dict[tuple[int, str], str]:
    """Return the congestion control of this process's TCP sockets, by descriptor and address."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(name))) as sock:
            raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
            found[int(name), str(sock.getsockname())] = raw.rstrip(b"\0").decode()
    return found


def obey(rank: Rank, line: str) -> bytes:
    """Return the answer to one line."""
    verb, *rest = line.split()
    if verb == "explain":
        return rank.explain(int(rest[0]))
    if verb == "absent":
        return rank.absent.encode()
    player, nbytes, dtype, op, warm_up, calls, check = rest
    return rank.measure(player, int(nbytes), dtype, op, int(warm_up), int(calls), check == "1")


def main() -> None:
    """Obey until the other end closes the pipe."""
    folder, size, local = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    index = next((r for r in range(1, size) if os.fork() == 0), 0)
    pipes = Pipes(folder, index)
    pipes.serve(functools.partial(obey, Rank(folder, index, size, local)))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
