"""The players of a layout: each player's world is started when it is first measured."""

from __future__ import annotations

from benchmarks.harness import system_calls, worlds
from benchmarks.harness.layouts import OURS, Layout
from benchmarks.harness.worlds import Round, World
from benchmarks.peers import Absent, settings
from benchmarks.peers.settings import Player


class LayoutWorlds:
    """All worlds of one layout, and the reasons why some players are absent."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.absent = settings.without(layout.players, layout.ranks)
        self._worlds: dict[str | Player, World] = {}

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
    ) -> Round | None:
        """Return a player's turn as `World.measure` does; None if it is absent."""
        if player in self.absent:
            return None
        try:
            turn = self._world(player, nbytes).measure(
                player, nbytes, dtype, calls, op=op, warm_up=warm_up, check=check
            )
        except Absent as reason:
            self._forget(player, nbytes)
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
        world = self._world(player, nbytes)
        return system_calls.count(
            world.processes(), lambda: world.measure(player, nbytes, "float32", calls)
        )

    def explain(self, nbytes: int) -> str:
        """Return what `algo="auto"` takes between nodes."""
        return self._world("hier", nbytes).ask(f"explain {nbytes}")[0].decode()

    def close(self) -> None:
        """End all worlds."""
        while self._worlds:
            self._worlds.popitem()[1].close()

    def _world(self, player: str, nbytes: int) -> World:
        key = self._key(player, nbytes)
        if key not in self._worlds:
            self._worlds[key] = self._start(key)
        return self._worlds[key]

    def _key(self, player: str, nbytes: int) -> str | Player:
        """Return whose world a player is in: with settings for this size, where it is an MPI."""
        if is_ours(player) or player.startswith("gloo"):
            return "torch"
        return player if player == "ring" else settings.player(player, self.layout.ranks, nbytes)

    def _start(self, key: str | Player) -> World:
        if isinstance(key, Player):
            return worlds.mpi_world(self.layout, key)
        if key == "ring":
            return worlds.ring_world(self.layout)
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

    def _forget(self, player: str, nbytes: int) -> None:
        """End the world of a player that has failed; who else needs it gets a new one."""
        world = self._worlds.pop(self._key(player, nbytes), None)
        if world is not None:
            world.close()


class WorldsByLayout:
    """The worlds of one layout at a time: that of the last ends when another is asked for."""

    def __init__(self) -> None:
        self._current: LayoutWorlds | None = None

    def of(self, layout: Layout) -> LayoutWorlds:
        """Return the worlds of a layout."""
        if self._current is None or self._current.layout != layout:
            self.close()
            self._current = LayoutWorlds(layout)
        return self._current

    def close(self) -> None:
        """End the current worlds."""
        if self._current is not None:
            self._current.close()
            self._current = None


def is_ours(player: str) -> bool:
    """Say whether a player is of this project: its failure fails the benchmark."""
    return player.partition(":")[0].removesuffix("-async") in (*OURS, "numpy")
