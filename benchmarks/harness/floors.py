"""What the machine allows: floors that are measured in the run, and the limits that follow.

Shared memory, p ranks on a node, a buffer of n bytes each. Symmetric buffers can be read by all:
each element of each rank must be read once and written once, in place. That is the traffic of an
update of n bytes (d[i] *= constant; a memcpy moves more, it also fetches what it overwrites):

    symmetric = p / c * n * (update(m) / m), m = n p / c

c = min(p, cores) ranks run at once; update(m) is what c cores need when each updates m bytes: its
share of all buffers, which decides what stays in a cache.

A private buffer cannot be read by others: what they need goes through shared memory, a piece at
a time at best, so that it stays in a cache (256 KiB here). Each rank writes n bytes there,
(p-1)/p n for the others to add and n/p of results, and reads as many at least. hand(256 KiB) is
what cores need when each writes as much and then reads what another core has written; of p-1 peers,
p - p/c are on other cores, the rest is taken to cost nothing:

    private = symmetric + p / c * (p - p/c) / (p-1) * n * (hand(256 KiB) / 256 KiB)

The sum itself costs nothing: adding runs at the speed of memory (the table shows both).

TCP, N nodes: at least 2 (N-1) n bytes cross in all (each node sends 2 (N-1)/N n). Two cores carry
`loopback` of them a second if neither ever waits: the CPU time that a sender and a receiver need
for a byte, in the best windows, with the best of chunks of 64 KiB to 1 MiB, which stay in caches.
And no result can be had before ceil(lg N) messages in a row:

    limit = max(2 (N-1) n / (c/2 * loopback), ceil(lg N) * hop)

Where both are used, the same cores do both: the limits add up.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field

from benchmarks import peers
from benchmarks.harness.layouts import Layout

_PIECE = 256 << 10  # bytes that stay in a core's cache
_SHARES = (32 << 20, 64 << 20)  # of large buffers, where ranks exceed cores


@dataclass
class Floors:
    """Seconds of a pass by (cores at once, bytes each).

    loopbacks: bytes per second that two cores carry, by the bytes of a chunk.
    """

    copy: dict[tuple[int, int], float] = field(default_factory=dict)
    add: dict[tuple[int, int], float] = field(default_factory=dict)
    update: dict[tuple[int, int], float] = field(default_factory=dict)
    hand: dict[tuple[int, int], float] = field(default_factory=dict)
    loopbacks: dict[int, float] = field(default_factory=dict)
    hop: float = 0.0
    absent: str = ""

    @property
    def loopback(self) -> float:
        """Return the bytes per second that two cores carry at best."""
        return max(self.loopbacks.values())

    def limits(self, layout: Layout, nbytes: int) -> dict[str, float]:
        """Return seconds by name: "limit", and "limit-sym" for symmetric buffers."""
        if self.absent:
            return {}
        local = layout.ranks // layout.nodes
        cores = 1
        while cores * 2 <= layout.ranks and (cores * 2, nbytes) in self.update:
            cores *= 2
        tcp = 0.0
        if layout.nodes > 1:
            crossing = 2 * (layout.nodes - 1) * nbytes / (self.loopback * max(1, cores / 2))
            tcp = max(crossing, (layout.nodes - 1).bit_length() * self.hop)
        if local == 1:
            return {"limit": tcp}
        turns = layout.ranks / cores
        share = max(size for _, size in self.update if size <= turns * nbytes)
        symmetric = turns * nbytes / share * self.update[cores, share]
        staged = 0.0
        if (cores, _PIECE) in self.hand:
            elsewhere = (local - local / cores) / (local - 1)
            staged = turns * elsewhere * nbytes / _PIECE * self.hand[cores, _PIECE]
        return {"limit": symmetric + staged + tcp, "limit-sym": symmetric + tcp}

    def lines(self) -> Iterator[str]:
        """Yield the rows of a table."""
        if self.absent:
            yield f"absent: {self.absent}"
            return
        yield f"{'GB/s, all cores together':>24}" + "".join(
            f"{what + ', ' + str(cores) + (' core' if cores == 1 else ' cores'):>17}"
            for cores in sorted({cores for cores, _ in self.copy})
            for what in ("copy", "add", "update")
        )
        for nbytes in sorted({nbytes for _, nbytes in self.copy}):
            yield f"{nbytes:>24}" + "".join(
                f"{cores * nbytes / table[cores, nbytes] / 1e9:>17.1f}"
                for cores in sorted({cores for cores, _ in self.copy})
                for table in (self.copy, self.add, self.update)
            )
        for (cores, nbytes), seconds in self.hand.items():
            rate = f"{cores * nbytes / seconds / 1e9:.1f} GB/s in all"
            yield f"shared memory from core to core, {cores} cores, {nbytes} B: {rate}"
        for chunk, rate in self.loopbacks.items():
            what = f"TCP over loopback, cubic, chunks of {chunk >> 10} KiB"
            yield f"{what}: two cores that never wait carry {rate / 1e9:.2f} GB/s"
        yield f"a message of 4 B over loopback, both ends polling: {self.hop * 1e6:.1f} us"


def measure(sizes: tuple[int, ...]) -> Floors:
    """Measure all floors; takes some seconds."""
    floors = Floors()
    try:
        program = peers.compiled("floors.c", peers.c_compiler())
        environ = os.environ | peers.cubic()
    except peers.Absent as reason:
        return Floors(absent=str(reason))
    text = subprocess.run(
        [program, *map(str, sorted({*sizes, *_SHARES}))],
        env=environ,
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    ).stdout
    for line in text.splitlines():
        name, *values = line.split()
        if name in ("copy", "add", "update", "hand"):
            getattr(floors, name)[int(values[0]), int(values[1])] = float(values[2])
        elif name == "loopback":
            floors.loopbacks[int(values[0])] = float(values[1])
        else:
            floors.hop = float(values[0])
    return floors
