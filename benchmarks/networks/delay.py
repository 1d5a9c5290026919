"""Allreduces on an emulated network with a delay, beside bare loops on sockets, by turns.

    python -m allreduce.emulate --hosts 32 --rate 50Gbit --delay 80us --dilation 250 -- \
        python -m benchmarks.networks.delay --sizes 64K,1M,4M --rounds 5

Each round calls every player at every size once, so that connections rest meanwhile, as they do
between the buckets of a training; `--repeat 5` calls each five times in a row instead. Rank 0
prints medians in ms on the network that is emulated, beside what the rate and the delay take.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import re
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt

from allreduce.commands.parser import at_least, parse_bytes
from allreduce.communicator.communicator import Communicator
from allreduce.communicator.init import init
from allreduce.emulate.network import parse_delay, parse_rate
from benchmarks.peers import c_compiler, compiled

_PORT = 29600
_TIMEOUT = 300.0
OURS = ("halving_doubling", "ring", "auto")

Player = Callable[[npt.NDArray[np.float32]], None]


def main() -> None:
    """Be one rank."""
    options = _parser().parse_args()
    comm = init(timeout=_TIMEOUT, measure=False)
    if not options.no_measure:
        comm.measure()
    with ExitStack() as stack:
        players: dict[str, Player] = {
            name: lambda x, name=name: comm.allreduce(x, algo=name)  # type: ignore[misc]
            for name in options.players.split(",")
        }
        players |= _bare_players(comm, stack)
        _check(comm, players)
        found = dict(_measure(comm, players, options))
        if comm.rank == 0:
            print(_table(found, comm.world_size), flush=True)
            if options.json:
                rows = [[name, nbytes, *seconds] for (name, nbytes), seconds in found.items()]
                network = os.environ["ALLREDUCE_EMULATED"]
                options.json.write_text(json.dumps({"network": network, "rows": rows}))
    comm.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks.delay")
    add = parser.add_argument
    add(
        "--sizes",
        type=lambda text: [parse_bytes(word) for word in text.split(",")],
        default=[1 << 20],
    )
    add("--rounds", type=at_least(1), default=5)
    add("--repeat", type=at_least(1), default=1)
    add("--players", default=",".join(OURS), help="algorithms of ours")
    add("--no-measure", action="store_true", help="auto goes by the default thresholds")
    add("--json", type=Path)
    return parser


def _measure(
    comm: Communicator, players: Mapping[str, Player], options: argparse.Namespace
) -> Iterator[tuple[tuple[str, int], list[float]]]:
    """Yield the seconds of each player's calls at a size: of each the slowest rank's."""
    found: dict[tuple[str, int], list[float]] = {}
    alpha, _ = _network()
    together = (2 * math.log2(comm.world_size) + 2) * alpha * _dilation()
    for turn in range(options.rounds + 1):
        for nbytes in options.sizes:
            x = np.zeros(nbytes // 4, np.float32)
            for name, player in players.items():
                for call in range(options.repeat):
                    begin = _meet(comm, together)
                    player(x)
                    seconds = time.perf_counter() - begin
                    if turn and (call or options.repeat == 1):  # the first turn warms up
                        found.setdefault((name, nbytes), []).append(seconds)
    for key, seconds in found.items():
        slowest = np.array(seconds)
        comm.allreduce(slowest, "max")
        yield key, slowest.tolist()


def _meet(comm: Communicator, seconds: float) -> float:
    """Return the time at which all ranks go on: hosts of one machine have one clock.

    Out of a barrier, ranks may come some delays apart: the last to enter it leaves at once.
    """
    now = np.array([time.perf_counter()])
    comm.allreduce(now, "max")
    begin = float(now[0]) + seconds
    time.sleep(max(0.0, begin - time.perf_counter()))
    return begin


def _check(comm: Communicator, players: Mapping[str, Player]) -> None:
    for name, player in players.items():
        x = np.arange(1000, dtype=np.float32) % 7 + comm.rank
        player(x)
        p = comm.world_size
        assert (x == p * (np.arange(1000) % 7) + p * (p - 1) / 2).all(), name


def _bare_players(comm: Communicator, stack: ExitStack) -> dict[str, Player]:
    """Return the loops in C, on connections of their own."""
    rank, size = comm.rank, comm.world_size
    if rank == 0:
        compiled("bare.c", c_compiler(), "-shared", "-fPIC")
    comm.barrier()
    library = ctypes.CDLL(compiled("bare.c", c_compiler(), "-shared", "-fPIC"), use_errno=True)
    scratch = np.empty(1 << 24, np.float32)

    def player(function: ctypes._NamedFuncPointer, sockets: Sequence[socket.socket]) -> Player:
        descriptors = (ctypes.c_int * len(sockets))(*(s.fileno() for s in sockets))

        def call(x: npt.NDArray[np.float32]) -> None:
            pointers = (ctypes.c_void_p(a.ctypes.data) for a in (x, scratch))
            data, room = pointers
            count = ctypes.c_size_t(x.size)
            if function(rank, size, descriptors, data, count, room) != 0:
                raise OSError(ctypes.get_errno(), f"rank {rank}: a bare loop")

        return call

    made = {}
    ring = _connect(comm, stack, [(rank + 1) % size, (rank - 1) % size])
    made["bare ring"] = player(library.bare_ring, ring)
    if size & (size - 1) == 0:
        partners = [rank ^ (1 << k) for k in range(size.bit_length() - 1)]
        found = _connect(comm, stack, partners)
        made["bare halving_doubling"] = player(library.bare_halving_doubling, found)
    return made


def _connect(comm: Communicator, stack: ExitStack, peers: Sequence[int]) -> list[socket.socket]:
    """Return sockets to the peers, of which each must name this rank too; the higher rank dials."""
    found = {}
    here = comm.rank
    with socket.create_server(("", _PORT), backlog=len(peers)) as listener:
        listener.settimeout(_TIMEOUT)
        addresses = comm.allgather(_own_address()).reshape(comm.world_size, -1)
        for peer in {p for p in peers if p < here}:
            address = socket.inet_ntoa(addresses[peer].tobytes())
            found[peer] = socket.create_connection((address, _PORT), timeout=_TIMEOUT)
            found[peer].sendall(here.to_bytes(4, "big"))
        for _ in {p for p in peers if p > here}:
            accepted, _ = listener.accept()
            found[int.from_bytes(accepted.recv(4, socket.MSG_WAITALL), "big")] = accepted
        comm.barrier()  # before anybody's listener closes
    for connection in found.values():
        stack.enter_context(connection)
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return [found[peer] for peer in peers]


def _own_address() -> npt.NDArray[np.uint8]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((os.environ["MASTER_ADDR"], 9))
        return np.frombuffer(socket.inet_aton(probe.getsockname()[0]), np.uint8).copy()


def _table(found: Mapping[tuple[str, int], Sequence[float]], ranks: int) -> str:
    sizes = sorted({nbytes for _, nbytes in found})
    names = dict.fromkeys(name for name, _ in found)
    lines = [f"EMULATED: {os.environ['ALLREDUCE_EMULATED']}; ms on that network, medians"]
    lines.append(f"{'':26}" + "".join(f"{nbytes >> 10:>9} KiB" for nbytes in sizes))
    for name, seconds in _least(ranks).items():
        lines.append(f"{name:26}" + "".join(f"{1e3 * seconds(n):>13.3f}" for n in sizes))
    for name in names:
        medians = [statistics.median(found[name, nbytes]) / _dilation() for nbytes in sizes]
        lines.append(f"{name:26}" + "".join(f"{1e3 * m:>13.3f}" for m in medians))
    return "\n".join(lines)


def _network() -> tuple[float, float]:
    """Return the delay in seconds and the seconds of a byte of the network that is emulated."""
    match = re.search(r"([\d.]+ \w+/s), ([\d.]+ \w+) a way", os.environ["ALLREDUCE_EMULATED"])
    assert match is not None
    return parse_delay(match[2]), 8 / parse_rate(match[1])


def _dilation() -> float:
    return float(os.environ["ALLREDUCE_DILATION"])


def _least(ranks: int) -> Mapping[str, Callable[[int], float]]:
    """Return what rate and delay alone take: 2 lg p rounds, or 2 (p - 1), and all bytes."""
    alpha, beta = _network()
    rounds = {"least halving_doubling": 2 * math.log2(ranks), "least ring": 2 * (ranks - 1)}

    def seconds(number: float) -> Callable[[int], float]:
        return lambda nbytes: number * alpha + 2 * (ranks - 1) / ranks * nbytes * beta

    return {name: seconds(number) for name, number in rounds.items()}


if __name__ == "__main__":
    sys.exit(main())
