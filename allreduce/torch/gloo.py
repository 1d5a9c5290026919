"""Runs programs that ask torch.distributed for "gloo" on hier, without a change to them.

Two functions of torch's are wrapped: the one that makes process groups, and the one that it asks
for the backend of each device. The second answers "hier" in the place of "gloo" while the first
runs, and the truth to all others. So who asks for a group's name hears what the program has said.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from allreduce.errors import UsageError

__all__ = ["replace_as_asked", "replace_gloo", "restore_gloo"]

_VARIABLE = "HIER_REPLACE_GLOO"

log = logging.getLogger("allreduce")


@dataclass(slots=True)
class _Group:
    """What is noted of a group while torch makes it."""

    replaced: bool = False  # hier has taken the place of Gloo
    beside: str = ""  # the backend because of which it has not


class _State(threading.local):
    group: _Group | None = None  # that this thread makes now


_on = False
_state = _State()
_lock = threading.Lock()
_ours: list[Any] = []  # functions that stand in the place of torch's


def replace_gloo() -> None:
    """Let hier make each process group, or part of one, whose backend is "gloo", from now on.

    These are `init_process_group("gloo")`, `new_group(backend="gloo")`, the CPU's half of
    "cpu:gloo,cuda:nccl", and no backend at all where torch would take Gloo. `get_backend` returns
    what it does with Gloo, so `torch.distributed.monitored_barrier` works where that is "gloo".
    Groups that exist stay as they are. All ranks of a job call it, or none. Calling it twice
    changes nothing.

    Raises UsageError if this torch has no torch.distributed, or one that is made differently.
    """
    global _on
    from allreduce.torch._autoload import register

    c10d = _c10d()
    register()
    with _lock:
        for owner, name, wrapper in _places(c10d):
            found = getattr(owner, name)
            if not _has_ours(found):
                _ours.append(wrapper(c10d, found))
                setattr(owner, name, _ours[-1])
        _on = True


def restore_gloo() -> None:
    """Undo `replace_gloo`: the next groups for "gloo" are Gloo's. Groups that exist stay."""
    global _on
    with _lock:
        _on = False
        for owner, name, _ in _places(_c10d()):
            found = getattr(owner, name)
            if found in _ours:  # else somebody has wrapped it once more: it does nothing now
                _ours.remove(found)
                setattr(owner, name, found.__wrapped__)


def replace_as_asked() -> None:
    """Call `replace_gloo` if HIER_REPLACE_GLOO is 1. Raises UsageError if it is neither 0 nor 1."""
    value = os.environ.get(_VARIABLE, "") or "0"
    if value not in ("0", "1"):
        raise UsageError(f'{_VARIABLE}="{value}": write 1 to run "gloo" groups on hier, or 0')
    if value == "1":
        replace_gloo()


def _c10d() -> Any:
    import torch.distributed as dist

    if not dist.is_available():
        raise UsageError("replace_gloo: this torch has no torch.distributed")
    from torch.distributed import distributed_c10d

    return distributed_c10d


def _places(c10d: Any) -> list[tuple[Any, str, Callable[[Any, Any], Any]]]:
    """Where the two functions stand, and what wraps each."""
    places: list[tuple[Any, str, Callable[[Any, Any], Any]]] = [
        (c10d, "_new_process_group_helper", _making),
        (getattr(c10d, "BackendConfig", None), "get_device_backend_map", _hier_for_gloo),
    ]
    if missing := [name for owner, name, _ in places if not hasattr(owner, name)]:
        import torch

        raise UsageError(
            f"replace_gloo does not know torch {torch.__version__}, which has no {missing[0]}; "
            'write "hier" where the program says "gloo"'
        )
    return places


def _has_ours(function: Any) -> bool:
    while function is not None and function not in _ours:
        function = getattr(function, "__wrapped__", None)
    return function is not None


def _making(c10d: Any, make_group: Any) -> Any:
    @functools.wraps(make_group)
    def replacement(*arguments: Any, **named: Any) -> Any:
        if not _on:
            return make_group(*arguments, **named)
        outer, group = _state.group, _Group()
        _state.group = group
        try:
            made = make_group(*arguments, **named)
        finally:
            _state.group = outer
        if group.beside:
            log.warning(
                "Gloo stays in a group with %s, beside which torch has no hier", group.beside
            )
        if group.replaced:
            _correct_default(c10d, made[0])
        return made

    return replacement


def _hier_for_gloo(c10d: Any, backends_of: Any) -> Any:
    @functools.wraps(backends_of)
    def replacement(config: Any) -> dict[str, Any]:
        found: dict[str, Any] = backends_of(config)
        group = _state.group
        if group is None or "gloo" not in found.values():
            return found
        # torch has one backend of the kind "custom" in a group: hier would take the other's place.
        kinds, custom = c10d.Backend.backend_type_map, c10d.ProcessGroup.BackendType.CUSTOM
        others = [name for name in found.values() if name not in ("gloo", "hier")]
        if custom_ones := [name for name in others if kinds.get(name, custom) == custom]:
            group.beside = custom_ones[0]
            return found
        group.replaced = True
        return {device: "hier" if name == "gloo" else name for device, name in found.items()}

    return replacement


def _correct_default(c10d: Any, group: Any) -> None:
    """Makes hier the default backend of its group where torch has named Gloo, or nothing.

    Not under Gloo's name: torch's DDP takes what has that name for a ProcessGroupGloo.
    """
    in_it = isinstance(group, c10d.ProcessGroup)  # this rank
    if in_it and group._get_backend_name() in ("gloo", "undefined"):
        group._set_default_backend(c10d.ProcessGroup.BackendType.CUSTOM)
