"""The ranks of an emulated world: ours alone, without torch, every rank on a node of its own.

    python -m benchmarks.harness.emulated_rank FOLDER RANKS MBIT

On links of MBIT Mbit/s between network namespaces, or over loopback where that is 0.
ALLREDUCE_TCP_CONGESTION says which congestion control.
A line may also be "link" (the measured figures), "ranks_per_core" (ranks by cores) or "congestion".
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

import numpy as np

from allreduce.communicator.communicator import Communicator
from allreduce.rendezvous.store import FileStore
from benchmarks.harness.pipes import Pipes, answer, timed
from benchmarks.networks import namespaces

_TIMEOUT = 40.0
_PERIOD = 7  # of the pattern that is summed: small integers, exact in any order


class Rank:
    """One rank of the group."""

    def __init__(self, folder: Path, rank: int, ranks: int, mbit: int) -> None:
        if mbit:
            os.environ["ALLREDUCE_HOST"] = namespaces.address(rank)
        self._comm = Communicator.from_store(
            FileStore(folder / "store", _TIMEOUT),
            rank,
            ranks,
            nodes=None if mbit else ranks,
            lanes=1,
            timeout=_TIMEOUT,
            measure=False,
        )
        self._comm.measure()
        self._data = np.zeros(0, np.float32)

    def obey(self, line: str) -> bytes:
        """Return the answer to one line."""
        verb, *rest = line.split()
        if verb == "congestion":
            return self._comm.congestion.encode()
        if verb == "ranks_per_core":
            return np.array([self._comm.layout.ranks_per_core]).tobytes()
        if verb == "link":
            link = self._comm.link
            assert link is not None
            further = link.alpha if link.overhead is None else link.overhead
            return np.array([link.alpha, link.beta, link.gamma, further]).tobytes()
        algorithm, nbytes, _, _, warm_up, calls, check = rest
        return self._measure(algorithm, int(nbytes), int(warm_up), int(calls), check == "1")

    def _measure(self, algorithm: str, nbytes: int, warm_up: int, calls: int, check: bool) -> bytes:
        if self._data.nbytes != nbytes:
            self._data = np.zeros(nbytes // 4, np.float32)
        call = functools.partial(self._comm.allreduce, self._data, algo=algorithm)
        wrong = self._wrong_sums(algorithm) if check else 0
        return answer(functools.partial(timed, call), warm_up, calls, wrong)

    def _wrong_sums(self, algorithm: str) -> int:
        ranks = self._comm.world_size
        pattern = np.arange(len(self._data), dtype=np.float32) % _PERIOD
        self._data[:] = pattern + self._comm.rank
        self._comm.allreduce(self._data, algo=algorithm)
        wrong = int((self._data != pattern * ranks + ranks * (ranks - 1) // 2).sum())
        self._data[:] = 0
        return wrong

    def close(self) -> None:
        """Leave the group."""
        self._comm.close()


def main() -> None:
    """Become all ranks, and obey until the other end closes the pipes."""
    folder, ranks, mbit = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    if mbit:
        index = namespaces.fork_hosts(ranks, mbit * 1e6)
    else:
        index = next((r for r in range(1, ranks) if os.fork() == 0), 0)
    pipes = Pipes(folder, index)
    rank = Rank(folder, index, ranks, mbit)
    pipes.serve(rank.obey)
    rank.close()


if __name__ == "__main__":
    main()
