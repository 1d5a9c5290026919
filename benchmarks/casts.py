"""The players of a layout: each player's world is started when it is first measured."""

from __future__ import annotations

from benchmarks import system_calls, worlds
from benchmarks.layouts import OURS, Layout
from benchmarks.peers import Absent
from benchmarks.worlds import Round, World


class Cast:
    """All worlds of one layout, and the reasons why some players are absent."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.absent: dict[str, str] = {}
        self._worlds: dict[str, World] = {}

    def measure(
        self,
        player: str,
        nbytes: int,
        dtype: str,
        calls: int,
        *,
        warm_up: int = 0,
        check: bool = False,
    ) -> Round | None:
        """Return a player's turn as `World.measure` does; None if it is absent."""
        if player in self.absent:
            return None
        try:
            turn = self._world(player).measure(
                player, nbytes, dtype, calls, warm_up=warm_up, check=check
            )
        except Absent as reason:
            self._forget(player)
            self._go_on_without(player, str(reason))
            return None
        if turn.wrong:
            self._go_on_without(player, f"{turn.wrong} wrong sums of {nbytes} B {dtype}")
        return None if player in self.absent else turn

    def count_system_calls(self, player: str, nbytes: int, calls: int) -> int | None:
        """Return those of all ranks during a turn; None if the player is absent.

        Raises:
            Absent: they cannot be counted here.
        """
        if self.measure(player, nbytes, "float32", calls) is None:  # warm, and with its plan made
            return None
        world = self._world(player)
        return system_calls.count(
            world.processes(), lambda: world.measure(player, nbytes, "float32", calls)
        )

    def explain(self, nbytes: int) -> str:
        """Return what `algo="auto"` takes between nodes."""
        return self._world("hier").ask(f"explain {nbytes}")[0].decode()

    def close(self) -> None:
        """End all worlds."""
        while self._worlds:
            self._worlds.popitem()[1].close()

    def _world(self, player: str) -> World:
        name = _name_of_world(player)
        if name not in self._worlds:
            self._worlds[name] = self._start(name)
        return self._worlds[name]

    def _start(self, name: str) -> World:
        if name == "ring":
            return worlds.ring_world(self.layout)
        if name != "torch":
            return worlds.mpi_world(self.layout, name)
        world = worlds.torch_world(self.layout)
        for reason in world.ask("absent"):
            if reason:
                self.absent["gloo-cubic"] = reason.decode()
        return world

    def _go_on_without(self, player: str, reason: str) -> None:
        """Note why a peer is absent. Ours must not be."""
        if is_ours(player):
            raise RuntimeError(f"{player}: {reason}")
        self.absent[player] = reason

    def _forget(self, player: str) -> None:
        """End the world of a player that has failed; who else needs it gets a new one."""
        world = self._worlds.pop(_name_of_world(player), None)
        if world is not None:
            world.close()


class Casts:
    """The cast of one layout at a time: that of the last ends when another is asked for."""

    def __init__(self) -> None:
        self._current: Cast | None = None

    def of(self, layout: Layout) -> Cast:
        """Return the cast of a layout."""
        if self._current is None or self._current.layout != layout:
            self.close()
            self._current = Cast(layout)
        return self._current

    def close(self) -> None:
        """End the current cast."""
        if self._current is not None:
            self._current.close()
            self._current = None


def is_ours(player: str) -> bool:
    """Say whether a player is of this project: its failure fails the benchmark."""
    return player.partition(":")[0] in (*OURS, "bare")


def _name_of_world(player: str) -> str:
    return "torch" if is_ours(player) or player.startswith("gloo") else player
