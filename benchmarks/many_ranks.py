"""How a group of many ranks starts: time, memory, descriptors.

    python -m benchmarks.many_ranks 256 32

Ranks are processes of this machine, forked from one that has imported the package. Nodes are parts
of the machine that share memory; between them ranks talk over loopback. Each rank measures itself
from before `init` until behind it, and again behind its first collectives, whose sums it checks.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from allreduce.communicator.communicator import Communicator
from allreduce.communicator.init import init  # here, so that no rank has to import it

TIMEOUT = 280.0  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """What one rank saw. Seconds since the first was forked; MiB that it alone has written to."""

    started: float
    done: float
    cpu: float  # seconds of `init`
    memory: float  # by `init`
    memory_done: float
    descriptors: int


def private_memory() -> float:
    """Return the MiB of memory of this process that no other one has and that it has written to."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) / 1024
    raise OSError("no Private_Dirty in /proc/self/smaps_rollup")


def use(comm: Communicator) -> None:
    """Call collectives of all kinds, and check what comes."""
    p, r = comm.world_size, comm.rank
    total = p * (p - 1) // 2
    for count, algo in ((1, "auto"), (1 << 18, "auto"), (5000, "ring"), (5000, "halving_doubling")):
        x = comm.allreduce(np.full(count, r, np.int64), algo=algo)
        assert x[0] == x[-1] == total
    assert comm.broadcast(np.full(1000, r), root=p - 1)[0] == p - 1
    assert (comm.allgather(np.array([r])) == np.arange(p)).all()
    assert comm.reduce_scatter(np.full(p, r))[0] == total
    comm.barrier()


def live(rank: int, port: int, options: argparse.Namespace, start: float) -> Rank:
    """Be one rank, from its start to its end."""
    memory, cpu = private_memory(), time.process_time()
    comm = init(
        rank=rank,
        world_size=options.ranks,
        master_addr="127.0.0.1",
        master_port=port,
        nodes=options.nodes,
        connect=options.connect,
        measure=False,
        timeout=TIMEOUT,
    )
    started, cpu = time.monotonic() - start, time.process_time() - cpu
    memory_started = private_memory() - memory
    use(comm)
    result = Rank(
        started=started,
        done=time.monotonic() - start,
        cpu=cpu,
        memory=memory_started,
        memory_done=private_memory() - memory,
        descriptors=len(os.listdir("/proc/self/fd")),
    )
    comm.barrier()  # what `use` has needed of others stays until all have measured it
    comm.close()
    return result


def run(options: argparse.Namespace) -> list[Rank]:
    """Fork all ranks and return what they saw, in no order. Raises what a rank has raised."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    start = time.monotonic()
    with tempfile.TemporaryFile() as results:
        pids = []
        for rank in range(options.ranks):
            pid = os.fork()
            if pid == 0:
                _child(lambda rank=rank: live(rank, port, options, start), results.fileno())
            pids.append(pid)
        for pid in pids:
            os.waitpid(pid, 0)
        results.seek(0)
        lines = [json.loads(line) for line in results.read().splitlines()]
    if errors := [line for line in lines if "error" in line]:
        raise RuntimeError(f"{len(errors)} ranks failed, the first: {errors[0]}")
    if len(lines) < options.ranks:
        raise RuntimeError(f"{options.ranks - len(lines)} ranks died")
    return [Rank(**line) for line in lines]


def _child(body: Callable[[], Rank], results: int) -> NoReturn:
    try:
        line = asdict(body())
    except BaseException as error:
        line = {"error": f"{type(error).__name__}: {error}"}
    os.write(results, json.dumps(line).encode() + b"\n")  # the place in the file is everyone's
    os._exit(0)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("ranks", type=int, help="number of ranks")
    parser.add_argument("nodes", type=int, help="into how many nodes they are split")
    parser.add_argument("--connect", choices=("all", "needed"), help="as init takes it")
    return parser.parse_args(arguments)


def main() -> None:
    """Print one row for docs/many_ranks.md."""
    options = parse(sys.argv[1:])
    ranks = run(options)
    print("| ranks | started, s | first collectives, s | CPU of init, ms | MiB | descriptors |")
    print(
        f"| {options.ranks} on {options.nodes} nodes "
        f"| {max(r.started for r in ranks):.1f} "
        f"| {max(r.done for r in ranks):.1f} "
        f"| {1e3 * statistics.median(r.cpu for r in ranks):.0f}, "
        f"rank 0 {1e3 * max(r.cpu for r in ranks):.0f} "
        f"| {statistics.median(r.memory for r in ranks):.1f}, then "
        f"{statistics.median(r.memory_done for r in ranks):.1f} "
        f"| {max(r.descriptors for r in ranks)} |"
    )


if __name__ == "__main__":
    main()
