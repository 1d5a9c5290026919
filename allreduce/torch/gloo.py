"""Runs programs that ask torch.distributed for "gloo" on hier, without a change to them.

Two names of torch's are replaced while it is on: the method which says what backend a device has,
and the function that makes process groups. What asks a group for its name still hears "gloo".
"""

from __future__ import annotations

import functools
import inspect
import os
import threading
from typing import Any

from allreduce.errors import UsageError

__all__ = ["replace_as_asked", "replace_gloo", "restore_gloo"]

_VARIABLE = "HIER_REPLACE_GLOO"

_lock = threading.Lock()
_torchs: dict[str, Any] = {}  # what is replaced, by its name; empty while this is off


def replace_gloo() -> None:
    """Let hier make each process group, or part of one, whose backend is "gloo", from now on.

    These are `init_process_group("gloo")`, `new_group(backend="gloo")`, the CPU's half of
    "cpu:gloo,cuda:nccl", and no backend at all where torch would take Gloo. `get_backend` still
    returns "gloo", so `torch.distributed.monitored_barrier` works, too. Groups that exist stay as
    they are. All ranks of a job call it, or none. Calling it twice changes nothing.

    Raises UsageError if this torch has no torch.distributed, or one that is made differently.
    """
    c10d = _c10d()
    with _lock:
        if _torchs:
            return
        backends_of, make_group = _replaced_names(c10d)
        _torchs.update(backends_of=backends_of, make_group=make_group)
        c10d.BackendConfig.get_device_backend_map = _hier_for_gloo(backends_of)
        c10d._new_process_group_helper = _with_its_default(c10d, backends_of, make_group)


def restore_gloo() -> None:
    """Undo `replace_gloo`: the next groups for "gloo" are Gloo's. Groups that exist stay."""
    with _lock:
        if _torchs:
            c10d = _c10d()
            c10d.BackendConfig.get_device_backend_map = _torchs["backends_of"]
            c10d._new_process_group_helper = _torchs["make_group"]
            _torchs.clear()


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


def _replaced_names(c10d: Any) -> tuple[Any, Any]:
    try:
        return c10d.BackendConfig.get_device_backend_map, c10d._new_process_group_helper
    except AttributeError as error:
        import torch

        raise UsageError(
            f"replace_gloo does not know torch {torch.__version__} ({error}); write "
            '"hier" where the program says "gloo"'
        ) from error


def _hier_for_gloo(backends_of: Any) -> Any:
    @functools.wraps(backends_of)
    def replacement(config: Any) -> dict[str, Any]:
        return {
            device: "hier" if name == "gloo" else name
            for device, name in backends_of(config).items()
        }

    return replacement


def _with_its_default(c10d: Any, backends_of: Any, make_group: Any) -> Any:
    """Corrects the kind of a group's default backend, which torch takes from the name "gloo".

    It must not be of Gloo's kind, which torch's DDP takes for a ProcessGroupGloo.
    """

    @functools.wraps(make_group)
    def replacement(*arguments: Any, **named: Any) -> Any:
        made = make_group(*arguments, **named)
        group = made[0]
        if isinstance(group, c10d.ProcessGroup):  # else this rank is not in the group
            asked = inspect.signature(make_group).bind(*arguments, **named).arguments["backend"]
            backends = set(backends_of(c10d.BackendConfig(asked)).values())
            if "gloo" in backends and "nccl" not in backends:
                group._set_default_backend(c10d.ProcessGroup.BackendType.CUSTOM)
        return made

    return replacement
