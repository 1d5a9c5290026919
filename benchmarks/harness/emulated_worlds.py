"""Emulated worlds: ranks on links whose rate we choose, and the figures that describe the links."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from allreduce.tuning.cost import Link
from benchmarks import peers
from benchmarks.harness.layouts import Layout
from benchmarks.harness.worlds import Round, World
from benchmarks.networks import namespaces


@dataclass(frozen=True, slots=True)
class Setup:
    """`ranks`, each on a node of its own, on links of `mbit` Mbit/s; over loopback if that is 0."""

    ranks: int
    mbit: int
    congestion: str = "reno"  # a namespace may always have it, and it does not pace

    @property
    def layout(self) -> Layout:
        """Return the layout that a measurement has."""
        return Layout(self.ranks, self.ranks)

    @property
    def tier(self) -> str:
        """Return how far its times are to be trusted."""
        return "EMULATED" if self.mbit else "MEASURED"

    @property
    def network(self) -> str:
        """Return the name of its network."""
        return f"{self.mbit} Mbit/s" if self.mbit else "loopback"

    def __str__(self) -> str:
        return f"{self.ranks}r-{self.mbit or 'loopback'}"


def undisturbed(turns: Sequence[Round]) -> float:
    """Return the tenth percentile of all calls, in seconds.

    What else the machine does only adds to a call; and where ranks fill all cores it adds the other
    process's whole slice, some milliseconds.
    """
    return float(np.percentile(np.concatenate([turn.seconds for turn in turns]), 10))


class EmulatedWorld(World):
    """The ranks of a setup. A player is the name of an algorithm."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.absent: dict[str, str] = {}  # ours must not be
        command = [sys.executable, "-m", "benchmarks.harness.emulated_rank"]
        super().__init__(
            setup.ranks,
            lambda folder: [[*command, str(folder), str(setup.ranks), str(setup.mbit)]],
            {"ALLREDUCE_TCP_CONGESTION": setup.congestion, "OMP_NUM_THREADS": "1"},
        )

    @functools.cached_property
    def congestion(self) -> str:
        """Return the congestion control of its sockets."""
        return self.ask("congestion")[0].decode()

    def measure(
        self,
        player: str,
        nbytes: int,
        dtype: str,
        calls: int,
        *,
        op: str = "sum",
        warm_up: int = 0,
        check: bool = False,
    ) -> Round:
        """Measure as a world does; wrong sums are an error."""
        turn = super().measure(player, nbytes, dtype, calls, op=op, warm_up=warm_up, check=check)
        if turn.wrong:
            raise RuntimeError(f"{self.setup}: {player}: {turn.wrong} wrong sums of {nbytes} B")
        return turn

    def seconds(self, player: str, nbytes: int, calls: int) -> float:
        """Return the undisturbed time of some calls."""
        return undisturbed([self.measure(player, nbytes, "float32", calls, warm_up=1)])

    def link(self) -> Link:
        """Return the figures that the communicator has measured for itself."""
        return Link(*map(float, np.frombuffer(self.ask("link")[0])))

    def ranks_per_core(self) -> float:
        """Return the ranks of a machine by its cores, which these figures assume."""
        return float(np.frombuffer(self.ask("ranks_per_core")[0])[0])


class EmulatedWorlds:
    """One world at a time: that of the last setup ends when another is asked for."""

    def __init__(self) -> None:
        self._current: EmulatedWorld | None = None

    def of(self, setup: Setup) -> EmulatedWorld:
        """Return the world of a setup. Absent, with the reason, where there can be none."""
        if setup.mbit and (reason := namespaces.why_not()):
            raise peers.Absent(reason)
        if self._current is None or self._current.setup != setup:
            self.close()
            self._current = EmulatedWorld(setup)
        return self._current

    def close(self) -> None:
        """End the current world."""
        if self._current is not None:
            self._current.close()
            self._current = None
