"""One measurement of a sweep: all players at one layout, size and dtype, turn by turn in rounds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.harness.emulated_worlds import EmulatedWorld
from benchmarks.harness.layout_worlds import LayoutWorlds
from benchmarks.harness.layouts import Layout
from benchmarks.harness.worlds import Round

SECONDS = 0.12  # that a player gets in a measurement of a sweep, over all rounds
_ROUNDS = 5
_FEWER_ROUNDS = 3  # where one takes long
_LONG = 2.0
_CALLS_MAX = 1000  # in a round
_WARM_UP_SECONDS = 0.01
_TOO_SLOW = 6.0  # seconds per call
_CELL_SECONDS_MAX = 60.0

AUTO = "auto"  # what `algo="auto"` took, as a player of a measurement of algorithms

_clock_seconds = 0.0


def clock() -> float:
    """Return the time that pytest-benchmark sees: a round takes the median call of our player.

    So its own table and JSON show seconds per call of ours, and not how long all turns take.
    """
    return _clock_seconds


@dataclass
class Measurement:
    """What was measured, and what follows from it. Players are named in `Layout.players`."""

    test: str
    layout: Layout
    nbytes: int
    dtype: str = "float32"
    op: str = "sum"
    limits: dict[str, float] = field(default_factory=dict)  # seconds
    auto: str = ""
    absent: dict[str, str] = field(default_factory=dict)
    rounds: dict[str, list[Round]] = field(default_factory=dict)

    def p50(self, player: str) -> float:
        """Return seconds: the median of rounds' medians."""
        return float(np.median([np.median(r.seconds) for r in self.rounds[player]]))

    def p99(self, player: str) -> float:
        """Return seconds, of all calls of all rounds."""
        return float(np.percentile(np.concatenate([r.seconds for r in self.rounds[player]]), 99))

    def ratio(self, slow: str, fast: str) -> float:
        """Return how many times longer `slow` takes: the median over rounds, each a pair.

        One of the two may be the name of a limit.
        """
        return float(np.median(np.array(self._medians(slow)) / np.array(self._medians(fast))))

    @property
    def twice(self) -> float:
        """Return how far apart two measurements of one call are here: what no choice explains.

        That of "auto" and that of the same algorithm by name, by each round: the median of their
        ratios, the larger one over the other. 1 where they were not measured.
        """
        names = ("core", f"core:{self.auto}")
        if not self.has(*names):
            return 1.0
        pairs = zip(*map(self._medians, names), strict=True)
        return float(np.median([max(a, b) / min(a, b) for a, b in pairs]))

    def fastest(self, players: Sequence[str]) -> str:
        """Return the player with the least p50, or the limit."""
        return min(players, key=lambda p: float(np.median(self._medians(p))))

    def _medians(self, player: str) -> list[float]:
        if player in self.limits:
            return [self.limits[player]]
        if player == AUTO:  # what was taken by "auto" and by name is the same call, in two turns
            return list(np.mean([self._medians(p) for p in ("core", f"core:{self.auto}")], axis=0))
        return [float(np.median(r.seconds)) for r in self.rounds[player]]

    def algbw(self, player: str) -> float:
        """Return GB/s: bytes of the buffer by the median call."""
        return self.nbytes / self.p50(player) / 1e9

    def busbw(self, player: str) -> float:
        """Return GB/s as nccl-tests defines it: what each rank must send at least."""
        return self.algbw(player) * 2 * (self.layout.ranks - 1) / self.layout.ranks

    def cpu_per_gb(self, player: str) -> float:
        """Return CPU seconds of all ranks together for a buffer of 1 GB."""
        turns = self.rounds[player]
        total = sum(turn.cpu_seconds for turn in turns)
        return total / sum(len(turn.seconds) for turn in turns) / self.nbytes * 1e9

    def has(self, *players: str) -> bool:
        """Say whether all of these were measured (or are limits)."""
        return all(
            self.rounds.get(p) or p in self.limits or (p == AUTO and self.auto) for p in players
        )

    def summary(self) -> dict[str, Any]:
        """Return what goes into the JSON of pytest-benchmark."""
        figures = {
            player: {
                "p50_us": self.p50(player) * 1e6,
                "p99_us": self.p99(player) * 1e6,
                "algbw_GBps": self.algbw(player),
                "busbw_GBps": self.busbw(player),
                "cpu_s_per_GB": self.cpu_per_gb(player),
            }
            for player in self.rounds
        }
        limits = {f"{name}_us": seconds * 1e6 for name, seconds in self.limits.items()}
        return {"players": figures, "limits": limits, "absent": self.absent, "auto": self.auto}

    def described(self) -> dict[str, Any]:
        """Return the measurement with its figures, for pictures."""
        what = {"layout": self.layout.words(), "dtype": self.dtype, "op": self.op}
        return {**what, "nbytes": self.nbytes, **self.summary()}


def measure(
    measurement: Measurement,
    worlds: LayoutWorlds | EmulatedWorld,
    players: Sequence[str],
    benchmark: Any,
    seconds: float = SECONDS,
) -> None:
    """Fill a measurement: check each player's sums, see how long it takes, then measure in rounds.

    seconds: that a player gets, over all rounds.
    The first of `players` is the one whose times pytest-benchmark shows.
    """
    deadline = time.monotonic() + _CELL_SECONDS_MAX
    pace = _first_pace(measurement, worlds, players)
    slow = {p: f"{s:.0f} s a call" for p, s in pace.items() if s > _TOO_SLOW}

    def one_round() -> None:
        global _clock_seconds
        if not measurement.rounds or time.monotonic() < deadline:
            _one_round(measurement, worlds, pace, seconds, 1 if benchmark.disabled else _CALLS_MAX)
        _clock_seconds += float(np.median(measurement.rounds[players[0]][-1].seconds))

    for player in slow:
        del pace[player]
    benchmark.pedantic(one_round, rounds=_FEWER_ROUNDS if sum(pace.values()) > _LONG else _ROUNDS)
    measurement.absent = {p: why for p, why in (worlds.absent | slow).items() if p in players}
    measurement.rounds = {
        p: turns for p, turns in measurement.rounds.items() if p not in measurement.absent
    }
    benchmark.extra_info |= measurement.summary()


def _first_pace(
    measurement: Measurement, worlds: LayoutWorlds | EmulatedWorld, players: Sequence[str]
) -> dict[str, float]:
    """Return about how many seconds a call of each player takes, whose sums are right."""
    pace = {}
    for player in players:
        turn = worlds.measure(
            player, measurement.nbytes, measurement.dtype, 1, op=measurement.op, check=True
        )
        if turn is not None and turn.seconds[0] < SECONDS / 10:  # a first call also makes its plan
            turn = worlds.measure(
                player, measurement.nbytes, measurement.dtype, 3, op=measurement.op
            )
        if turn is not None:
            pace[player] = float(turn.seconds.mean())
    return pace


def _one_round(
    measurement: Measurement,
    worlds: LayoutWorlds | EmulatedWorld,
    pace: dict[str, float],
    budget: float,
    calls_max: int,
) -> None:
    """Let each player have its turn, as many calls as its time allows at the pace of the last."""
    turns = {}
    for player, seconds in pace.items():
        calls = max(1, min(calls_max, round(budget / _ROUNDS / seconds)))
        # One at least: whoever plays after one of the same process finds its buffers in the cache.
        warm_up = max(1, min(calls_max, int(_WARM_UP_SECONDS / seconds)))
        turn = worlds.measure(
            player, measurement.nbytes, measurement.dtype, calls, op=measurement.op, warm_up=warm_up
        )
        if turn is not None:
            turns[player] = turn
    for player, turn in turns.items():
        measurement.rounds.setdefault(player, []).append(turn)
        pace[player] = float(turn.seconds.mean())
