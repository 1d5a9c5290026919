"""Two hosts with two networks between them: ALLREDUCE_IFACE spreads the ranks of a node."""

from __future__ import annotations

import numpy as np
import pytest
from cables import IFACE, connected
from worlds import run_processes

MIB = 1 << 20
SENT = 8 * MIB  # by each host: its part of 2 nodes x 2 ranks' allreduce of so much
SECOND = "eth1"


def sum_and_count(comm, count: int, interfaces: list[str]) -> list[int]:
    """Return the bytes that left this host's interfaces meanwhile."""

    def sent() -> list[int]:
        with open("/proc/net/dev") as table:
            lines = table.readlines()[2:]
        rows = {name.strip(): row.split() for name, row in (line.split(":") for line in lines)}
        return [int(rows[interface][8]) for interface in interfaces]

    comm.barrier()
    before = sent()
    comm.barrier()
    total = comm.allreduce(np.ones(count, np.float32))
    comm.barrier()
    assert (total == comm.world_size).all()
    return [after - start for start, after in zip(before, sent(), strict=True)]


@pytest.mark.parametrize(
    ("words", "shares"),
    [
        (IFACE, (1.0, 0.0)),
        (SECOND, (0.0, 1.0)),
        (f"{IFACE},{SECOND}", (0.5, 0.5)),
        ("10.231.79.0/24,10.231.78.0/24", (0.5, 0.5)),
        ("eth*", (1.0, 0.0)),  # one pattern is one network
    ],
)
def test_each_network_carries_its_share(tmp_path, words: str, shares: tuple[float, float]) -> None:
    with connected(2) as hosts:
        hosts.join(0, 1, SECOND, "10.231.79")
        outcomes = run_processes(
            4,
            sum_and_count,
            tmp_path,
            SENT // 4,
            [IFACE, SECOND],
            env={"ALLREDUCE_IFACE": words},
            before=lambda rank: hosts.command(rank // 2),
            rails=0,
        )
    for outcome in outcomes:
        for sent, share in zip(outcome.result, shares, strict=True):
            assert abs(sent / SENT - share) < 0.05, outcomes
