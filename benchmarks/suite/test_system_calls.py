"""System calls a call and rank. What cannot be done with fewer, for a small message over TCP: one
`sendmsg` and one `recv` for each round of recursive doubling. What comes on top are looks that find
nothing, and the sleep of a rank whose core another one needs."""

from __future__ import annotations

import pytest

from benchmarks.conftest import Report, is_smoke
from benchmarks.harness.layout_worlds import WorldsByLayout
from benchmarks.harness.layouts import Layout
from benchmarks.peers import Absent
from benchmarks.report.tables import size_name

_LAYOUTS = (Layout(2, 1), Layout(2, 2), Layout(4, 4))
_CALLS = {1 << 10: 400, 1 << 20: 60}
_PLAYERS = ("core", "hier", "gloo", "openmpi", "openmpi-tcp", "ring")
_HEADER = f"{'system calls a call and rank':<36}" + "".join(f"{name:>12}" for name in _PLAYERS)


@pytest.mark.parametrize("layout", _LAYOUTS, ids=str)
def test_system_calls(
    layout: Layout,
    worlds_by_layout: WorldsByLayout,
    benchmark,
    report: Report,
    pytestconfig: pytest.Config,
) -> None:
    """Count them for each player, with the kernel's own counter."""
    worlds = worlds_by_layout.of(layout)
    players = [name for name in _PLAYERS if name in (*layout.players, "ring")]
    sizes = (1 << 10,) if is_smoke(pytestconfig) else tuple(_CALLS)
    counted: dict[tuple[str, int], str] = {}

    def count_all() -> None:
        for player in players:
            for nbytes in sizes:
                calls = _CALLS[nbytes]
                try:
                    total = worlds.count_system_calls(player, nbytes, calls)
                except Absent as reason:
                    pytest.skip(str(reason))
                if total is not None:
                    counted[player, nbytes] = f"{total / calls / layout.ranks:.1f}"

    benchmark.pedantic(count_all, rounds=1)
    for nbytes in sizes:
        row = "".join(f"{counted.get((player, nbytes), '-'):>12}" for player in _PLAYERS)
        report.row(_HEADER, f"{layout.words() + ', ' + size_name(nbytes):<36.60}{row}")
