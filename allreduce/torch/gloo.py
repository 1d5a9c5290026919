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
from dataclasses import dataclass, field
from typing import Any

from allreduce.errors import UsageError

__all__ = ["replace_as_asked", "replace_gloo", "restore_gloo"]

_VARIABLE = "HIER_REPLACE_GLOO"
_NAMES = ("_new_process_group_helper", "get_device_backend_map")

log = logging.getLogger("allreduce")


@dataclass(slots=True)
class _Replacement:
    on: bool = False
    torchs: tuple[Any, ...] = ()  # the two functions, as they were
    ours: tuple[Any, ...] = ()  # what stands in their place
    making: threading.local = field(default_factory=threading.local)
    lock: threading.Lock = field(default_factory=threading.Lock)


_replacement = _Replacement()


def replace_gloo() -> None:
    """Let hier make each process group, or part of one, whose backend is "gloo", from now on.

    These are `init_process_group("gloo")`, `new_group(backend="gloo")`, the CPU's half of
    "cpu:gloo,cuda:nccl", and no backend at all where torch would take Gloo. `get_backend` returns
    what it does with Gloo, so `torch.distributed.monitored_barrier` works where that is "gloo".
    Groups that exist stay as they are. All ranks of a job call it, or none. Calling it twice
    changes nothing.

    Raises UsageError if this torch has no torch.distributed, or one that is made differently.
    """
    c10d = _c10d()
    with _replacement.lock:
        if not _replacement.torchs or _found(c10d)[0] is _replacement.torchs[0]:
            make_group, backends_of = torchs = _found(c10d)
            ours = _making(c10d, make_group), _hier_for_gloo(c10d, backends_of)
            _replacement.torchs, _replacement.ours = torchs, ours
            _put(c10d, ours)
        _replacement.on = True


def restore_gloo() -> None:
    """Undo `replace_gloo`: the next groups for "gloo" are Gloo's. Groups that exist stay."""
    with _replacement.lock:
        _replacement.on = False
        if _replacement.torchs:
            c10d = _c10d()
            if _found(c10d) == _replacement.ours:  # nobody has wrapped them once more
                _put(c10d, _replacement.torchs)
                _replacement.torchs = _replacement.ours = ()


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


def _found(c10d: Any) -> tuple[Any, Any]:
    try:
        return getattr(c10d, _NAMES[0]), getattr(c10d.BackendConfig, _NAMES[1])
    except AttributeError as error:
        import torch

        raise UsageError(
            f"replace_gloo does not know torch {torch.__version__} ({error}); write "
            '"hier" where the program says "gloo"'
        ) from error


def _put(c10d: Any, functions: tuple[Any, ...]) -> None:
    setattr(c10d, _NAMES[0], functions[0])
    setattr(c10d.BackendConfig, _NAMES[1], functions[1])


def _making(c10d: Any, make_group: Any) -> Any:
    @functools.wraps(make_group)
    def replacement(*arguments: Any, **named: Any) -> Any:
        if not _replacement.on:
            return make_group(*arguments, **named)
        _replacement.making.now = True
        try:
            made = make_group(*arguments, **named)
        finally:
            _replacement.making.now = False
        _correct_default(c10d, made[0])
        return made

    return replacement


def _hier_for_gloo(c10d: Any, backends_of: Any) -> Any:
    @functools.wraps(backends_of)
    def replacement(config: Any) -> dict[str, Any]:
        found: dict[str, Any] = backends_of(config)
        if not getattr(_replacement.making, "now", False) or "gloo" not in found.values():
            return found
        # torch has one backend of the kind "custom" in a group: hier would take the other's place.
        kinds, custom = c10d.Backend.backend_type_map, c10d.ProcessGroup.BackendType.CUSTOM
        if others := [n for n in found.values() if n != "hier" and kinds.get(n) == custom]:
            log.warning(
                "Gloo stays in a group with %s, beside which torch takes no hier", others[0]
            )
            return found
        return {device: "hier" if n == "gloo" else n for device, n in found.items()}

    return replacement


def _correct_default(c10d: Any, group: Any) -> None:
    """Makes hier a new group's default backend where torch has named Gloo, or nothing.

    Not under Gloo's name: torch's DDP takes what has that name for a ProcessGroupGloo.
    """
    import torch

    cpu = torch.device("cpu")
    if not isinstance(group, c10d.ProcessGroup) or cpu not in group._device_types:
        return  # this rank is not in the group, for example
    backend = group._get_backend(cpu)
    name = getattr(backend, "wrapped_pg", backend).name()  # TORCH_DISTRIBUTED_DEBUG=DETAIL wraps it
    if name == "hier" and group._get_backend_name() in ("gloo", "undefined"):
        group._set_default_backend(c10d.ProcessGroup.BackendType.CUSTOM)
