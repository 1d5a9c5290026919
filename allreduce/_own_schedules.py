"""Schedules of users' own that collectives run, by name or as they are."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

from allreduce import _C
from allreduce.errors import UsageError

__all__ = ["OwnSchedules", "Registered", "register"]

_LONGEST_NAME = 23  # bytes, in the header of a run


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """A schedule under a name; scope "world" or "rail" says between whom it runs."""

    schedule: _C.Schedule
    scope: str
    root: int


# By name, collective and root. Names come first: to look for one that is none costs little.
_registered: dict[str, dict[_C.Collective, dict[int, Registered]]] = {}


def register(name: str, collective: _C.Collective, own: Registered) -> None:
    """Put a schedule that keeps its promise under a name, for its root."""
    _registered.setdefault(name, {}).setdefault(collective, {})[own.root] = own


def check_name(name: str, collective: _C.Collective) -> None:
    """Raise ValueError for a name that a schedule of one's own cannot have."""
    taken = {row.name for row in _C.algorithms(collective)} | set(_C.algorithm_aliases())
    if name in taken | {"", "auto"} or name.startswith("hierarchical"):
        raise ValueError(f"name {name!r} is taken; choose another one")
    if len(name.encode()) > _LONGEST_NAME:
        raise ValueError(f"name {name!r} is longer than {_LONGEST_NAME} bytes")


class OwnSchedules:
    """Those that one group knows. All ranks use the same, or are told that they disagree."""

    def __init__(self, group: _C.Group, world_size: int, num_nodes: int) -> None:
        self._group = group
        self._sizes = {"world": world_size, "rail": num_nodes}
        self._known: dict[tuple[str, _C.Collective, int], _C.Schedule] = {}

    def name_of(self, algo: Any, collective: _C.Collective, root: int) -> Any:
        """Return the name by which the core knows `algo`: a schedule, or a registered name."""
        if isinstance(algo, str):
            if algo in _registered:
                for own in _registered[algo].get(collective, {}).values():
                    self._told(algo, collective, own)
        elif isinstance(algo, _C.Schedule):
            name = f"own-{_crc(algo):08x}"
            return self._told(name, collective, Registered(schedule=algo, scope="", root=root))
        return algo

    def _told(self, name: str, collective: _C.Collective, own: Registered) -> str:
        key = (name, collective, own.root)
        if self._known.get(key) is own.schedule:
            return name
        expected = self._sizes.get(own.scope)
        size = own.schedule.world_size
        if expected is not None and size != expected:
            raise UsageError(
                f"algo: schedule {name!r} has {size} ranks, and scope={own.scope!r} needs "
                f"{expected} in this group of {self._sizes['world']} ranks on "
                f"{self._sizes['rail']} nodes"
            )
        self._group.add_schedule(name, collective, own.schedule, own.root)
        self._known[key] = own.schedule
        return name


def _crc(schedule: _C.Schedule) -> int:
    head = f"{schedule.world_size} {schedule.num_chunks} ".encode()
    return zlib.crc32(schedule.moves().tobytes(), zlib.crc32(head))
