"""Section: a rank is killed in the middle of a collective; how long until the others raise."""

from __future__ import annotations

import time

from benchmarks.gpu.place import CPU_RUNTIME
from benchmarks.gpu.rows import Rows
from benchmarks.gpu.worlds import WorldFailed, world

_LAYOUTS = {"2 nodes x 1": (2, "2"), "1 node x 2": (2, "1"), "2 nodes x 2": (4, "2")}
_START, _END = 40.0, 15.0  # seconds; the second must be below a collective's own deadline
_EXPECTED = ("PeerError", "AbortedError")
_RUNNING = 0.3  # seconds


def run(rows: Rows) -> None:
    """The last rank dies, by SIGKILL."""
    on = rows.place.on(CPU_RUNTIME)
    for words, (size, nodes) in list(_LAYOUTS.items())[: 1 if rows.quick else None]:
        name = f"hier, {words}: the others raise"
        spec = {"count": 300_000 if rows.small else 25_557_032}
        try:
            slowest, errors = _kill_one(rows, size, spec, {"ALLREDUCE_NODES": nodes})
        except WorldFailed as error:
            rows.check(name, False, on=on, note=str(error))
            continue
        rows.check(name, set(errors) <= set(_EXPECTED), on=on, note=", ".join(sorted(set(errors))))
        rows.add(f"hier, {words}: the last one", slowest * 1e3, "ms after the kill", on=on)


def _kill_one(
    rows: Rows, size: int, spec: dict[str, int], env: dict[str, str]
) -> tuple[float, list[str]]:
    with world(rows.place, size, "until_killed", spec, env) as ranks:
        ranks.wait_for("running", time.monotonic() + _START)
        time.sleep(_RUNNING)
        at = ranks.kill(size - 1)
        outcomes = ranks.end(at + _END, killed=size - 1)
    return max(o["at"] for o in outcomes) - at, [o["error"] for o in outcomes]
