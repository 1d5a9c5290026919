"""Simulated runs: how long a schedule takes on a network that we do not have.

The simulator runs the programs that the engine runs. The model is in csrc/analysis/simulate.h:
ports with a FIFO each, both directions apart; a pair per rank inside a node, a pair per node (its
NIC) between nodes; eager sends; reductions occupy the receiving rank.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from allreduce import _C
from allreduce.schedules import Schedule

__all__ = ["PRESETS", "Link", "Network", "Timeline", "simulate"]

WHOLE_MOVES = 1 << 62  # a segment that cuts no move

_KINDS = ("send", "recv_copy", "recv_reduce")


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """alpha: seconds a message; beta: seconds a byte; overhead: seconds of the sender a message."""

    alpha: float
    beta: float
    overhead: float = 0.0

    @classmethod
    def of(cls, *, microseconds: float, gigabits: float, overhead: float = 0.0) -> Link:
        """A link given by its latency in us, its rate in Gbit/s and its overhead in us."""
        return cls(alpha=microseconds * 1e-6, beta=8e-9 / gigabits, overhead=overhead * 1e-6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Nodes of equal links: `local` inside a node, `inter` between two; gamma: s/byte reduced."""

    local: Link
    inter: Link
    gamma: float = 0.0


PRESETS: dict[str, Network] = {
    # The paper's servers: 8 P100 by NVLink, one 50 Gbit/s NIC. The latencies are our assumption.
    "big_basin": Network(
        local=Link.of(microseconds=5, gigabits=160),
        inter=Link.of(microseconds=25, gigabits=50),
        gamma=1 / 40e9,
    ),
    "loopback": Network(
        local=Link.of(microseconds=1, gigabits=80),
        inter=Link.of(microseconds=15, gigabits=25),
        gamma=1 / 10e9,
    ),
    "ethernet_10g": Network(
        local=Link.of(microseconds=1, gigabits=80),
        inter=Link.of(microseconds=30, gigabits=10),
        gamma=1 / 10e9,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Timeline:
    """What a simulated run did; all times in seconds.

    spans: structured array [n], a row a step: rank, step, kind (0 send, 1 recv_copy,
        2 recv_reduce), peer, round, chunk, bytes, start, end; in the order in which they ended.
    rank_reducing, local_out_busy, local_in_busy: float64 [world_size].
    nic_out_busy, nic_in_busy: float64 [number of nodes].
    """

    seconds: float
    spans: npt.NDArray[np.void]
    rank_reducing: npt.NDArray[np.float64]
    local_out_busy: npt.NDArray[np.float64]
    local_in_busy: npt.NDArray[np.float64]
    nic_out_busy: npt.NDArray[np.float64]
    nic_in_busy: npt.NDArray[np.float64]

    def to_chrome_trace(self) -> str:
        """JSON for Perfetto (ui.perfetto.dev) or chrome://tracing: a process a rank."""
        events: list[dict[str, Any]] = []
        for rank in range(len(self.rank_reducing)):
            events.append(_metadata("process_name", rank, 0, f"rank {rank}"))
            events += [_metadata("thread_name", rank, t, n) for t, n in enumerate(("out", "in"))]
        for span in self.spans:
            arrow = "to" if span["kind"] == 0 else "from"
            events.append(
                {
                    "name": f"{_KINDS[span['kind']]} {arrow} {span['peer']}",
                    "ph": "X",
                    "pid": int(span["rank"]),
                    "tid": int(span["kind"] != 0),
                    "ts": float(span["start"]) * 1e6,
                    "dur": float(span["end"] - span["start"]) * 1e6,
                    "args": {key: int(span[key]) for key in ("round", "chunk", "bytes", "step")},
                }
            )
        return json.dumps({"traceEvents": events, "displayTimeUnit": "ns"})


def _metadata(kind: str, rank: int, thread: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": rank, "tid": thread, "args": {"name": name}}


def simulate(
    schedule: Schedule,
    count: int | Sequence[int],
    *,
    network: Network,
    node_sizes: Sequence[int] | None = None,
    element_size: int = 4,
    segment: int = WHOLE_MOVES,
) -> Timeline:
    """Simulates one run of a schedule.

    Args:
        schedule: of all ranks.
        count: elements, split evenly over the chunks; or num_chunks + 1 element offsets.
        network: the links' figures, for instance one of PRESETS.
        node_sizes: ranks of each node; one rank a node if None.
        element_size: bytes of an element.
        segment: most elements that a step carries; by default each move is one step.

    Raises:
        ValueError: if node_sizes or bounds do not fit the schedule.
    """
    sizes = [1] * schedule.world_size if node_sizes is None else list(node_sizes)
    if sum(sizes) != schedule.world_size or min(sizes) < 1:
        raise ValueError(f"node_sizes {sizes} do not hold {schedule.world_size} ranks")
    result = _C.simulate(
        schedule,
        count if isinstance(count, int) else list(count),
        element_size,
        segment,
        _C.Network(
            np.repeat(np.arange(len(sizes)), sizes).tolist(),
            _to_core(network.local),
            _to_core(network.inter),
            network.gamma,
        ),
    )
    return Timeline(
        seconds=result.seconds,
        spans=result.timeline,
        rank_reducing=result.rank_reducing,
        local_out_busy=result.local_out_busy,
        local_in_busy=result.local_in_busy,
        nic_out_busy=result.nic_out_busy,
        nic_in_busy=result.nic_in_busy,
    )


def _to_core(link: Link) -> Any:
    return _C.Link(link.alpha, link.beta, link.overhead)
