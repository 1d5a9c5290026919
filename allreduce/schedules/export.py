"""Schedules and their simulated runs as JSON, for pages that draw them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from allreduce.schedules import Schedule, algorithms, by_name
from allreduce.schedules.simulate import PRESETS, Timeline, simulate

__all__ = ["LAYOUTS", "NETWORKS", "SIZES", "as_dict", "page_of"]

# Ranks of each node.
LAYOUTS: dict[str, tuple[int, ...]] = {
    **{f"{nodes}x1": (1,) * nodes for nodes in (3, 4, 5, 8, 16)},
    **{"2x2": (2, 2), "3+2": (3, 2), "2x4": (4, 4), "4x4": (4,) * 4},
}
SIZES = (4 << 10, 1 << 20, 64 << 20)  # bytes
NETWORKS = ("big_basin", "ethernet_10g")
_ELEMENT_SIZE = 4


def as_dict(schedule: Schedule, node_sizes: Sequence[int]) -> dict[str, Any]:
    """Return a schedule's rounds, and its simulated runs by network and bytes.

    rounds: of each round its moves [src, dst, lo, hi, reduce]. runs: by "NETWORK/BYTES" the
    seconds, and spans [rank, sends, peer, round, start, end] with times in microseconds.
    """
    runs = {}
    for network in NETWORKS:
        for nbytes in SIZES:
            timeline = simulate(
                schedule,
                nbytes // _ELEMENT_SIZE,
                network=PRESETS[network],
                node_sizes=node_sizes,
                element_size=_ELEMENT_SIZE,
            )
            runs[f"{network}/{nbytes}"] = {
                "seconds": timeline.seconds,
                "spans": _spans(timeline),
            }
    rounds = [[[*move[:4], int(move[4])] for move in moves] for moves in schedule.rounds]
    return {"chunks": schedule.num_chunks, "rounds": rounds, "runs": runs}


def page_of(layout: str) -> str:
    """Return the script that hands the schedules of one of LAYOUTS to docs/explore/explore.js."""
    sizes = LAYOUTS[layout]
    names = algorithms("allreduce")
    found = {name: by_name(name, sum(sizes)) for name in names}
    if max(sizes) > 1:
        found |= {
            f"hierarchical:{name}": by_name(f"hierarchical:{name}", node_sizes=sizes)
            for name in names
        }
    content = {
        "nodes": sizes,
        "bytes": SIZES,
        "networks": NETWORKS,
        "algorithms": {name: as_dict(schedule, sizes) for name, schedule in found.items()},
    }
    text = json.dumps(content, separators=(",", ":"))
    return f"explore.add({json.dumps(layout)}, {text});\n"


def _spans(timeline: Timeline) -> list[list[float]]:
    return [
        [
            *(int(span["rank"]), int(span["kind"] == 0), int(span["peer"]), int(span["round"])),
            *(round(float(span[end]) * 1e6, 2) for end in ("start", "end")),
        ]
        for span in timeline.spans
    ]
