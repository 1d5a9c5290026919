"""Schedules of users' own that collectives run, by name or as they are."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from allreduce import _C
from allreduce.errors import UsageError

__all__ = ["OwnSchedules", "check_name", "register"]

_LONGEST_NAME = 23  # bytes, in the header of a run
_MOST_REMEMBERED = 64  # schedules that were passed as they are


@dataclass(slots=True)
class _Entry:
    """What a name means: scope "world" or "rail", and schedules by size and root."""

    scope: str
    schedules: dict[tuple[int, int], _C.Schedule] = field(default_factory=dict)


# By name, then collective: to look for a name that is none costs little.
_registered: dict[str, dict[_C.Collective, _Entry]] = {}


def register(
    name: str, collective: _C.Collective, schedule: _C.Schedule, scope: str, root: int
) -> None:
    """Put a schedule that keeps its promise under a name, for its number of ranks and its root."""
    entries = _registered.setdefault(name, {})
    entry = entries.get(collective)
    if entry is None or entry.scope != scope:
        entry = entries[collective] = _Entry(scope)
    entry.schedules[schedule.world_size, root] = schedule


def check_name(name: str, collective: _C.Collective) -> None:
    """Raise ValueError for a name that a schedule of one's own cannot have."""
    taken = {row.name for row in _C.algorithms(collective)} | set(_C.algorithm_aliases())
    if name in taken | {"", "auto"} or name.startswith("hierarchical"):
        raise ValueError(f"name {name!r} is taken; choose another one")
    if len(name.encode()) > _LONGEST_NAME:
        raise ValueError(f"name {name!r} is longer than {_LONGEST_NAME} bytes")


class OwnSchedules:
    """Those that one group knows. All ranks use the same, or are told that they disagree."""

    def __init__(self, group: _C.Group, node_of_rank: Sequence[int]) -> None:
        self._group = group
        self._node_of_rank = node_of_rank
        self._world_size = len(node_of_rank)
        self._num_nodes = max(node_of_rank) + 1
        self._known: dict[tuple[str, _C.Collective, int], _C.Schedule] = {}
        self._names: dict[int, tuple[_C.Schedule, str]] = {}  # by id, of those that are alive

    def name_of(self, algo: Any, collective: _C.Collective, root: int) -> Any:
        """Return the name by which the core knows `algo`: a schedule, or a registered name."""
        if isinstance(algo, str):
            if algo in _registered and (entry := _registered[algo].get(collective)):
                return self._registered(algo, entry, collective, root)
        elif isinstance(algo, _C.Schedule):
            return self._as_it_is(algo, collective, root)
        return algo

    def _registered(self, name: str, entry: _Entry, kind: _C.Collective, root: int) -> str:
        if not 0 <= root < self._world_size:
            return name  # the core says so
        size = self._world_size
        if entry.scope == "rail":
            if self._num_nodes == 1:
                return "auto"  # nothing is between nodes
            size, root = self._num_nodes, self._node_of_rank[root]
        schedule = entry.schedules.get((size, root))
        if schedule is None:
            there = ", ".join(f"{p} ranks and root {r}" for p, r in sorted(entry.schedules))
            raise UsageError(
                f"algo: schedule {name!r} (scope {entry.scope!r}) is registered for {there}; this "
                f"call needs it for {size} ranks and root {root}"
            )
        return self._told(name, kind, schedule, root)

    def _as_it_is(self, schedule: _C.Schedule, kind: _C.Collective, root: int) -> str:
        known = self._names.get(id(schedule))
        if known is None:
            if len(self._names) >= _MOST_REMEMBERED:
                self._names.clear()
            known = self._names[id(schedule)] = (schedule, f"own-{_crc(schedule):08x}")
        between_nodes = schedule.world_size == self._num_nodes != self._world_size
        if between_nodes and 0 <= root < self._world_size:
            root = self._node_of_rank[root]
        return self._told(known[1], kind, schedule, root)

    def _told(self, name: str, kind: _C.Collective, schedule: _C.Schedule, root: int) -> str:
        known = self._known.get((name, kind, root))
        if known is not schedule and known != schedule:
            self._group.add_schedule(name, kind, schedule, root)
        self._known[name, kind, root] = schedule
        return name


def _crc(schedule: _C.Schedule) -> int:
    head = f"{schedule.world_size} {schedule.num_chunks} ".encode()
    return zlib.crc32(schedule.moves().tobytes(), zlib.crc32(head))
