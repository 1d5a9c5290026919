"""The arguments of DistributedDataParallel: ours, and torch's where they mean something here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from allreduce.errors import UsageError
from allreduce.torch.ddp.bucket_size import AUTO, DEFAULT, BucketBytes
from allreduce.torch.ddp.cast_buckets import check_wire_dtype

__all__ = ["Options", "bytes_of", "check_device_ids", "one_of", "refuse_unsupported"]

_MIB = 1 << 20

# Arguments of torch's that mean nothing here: the value that asks for nothing, and why.
_UNSUPPORTED: dict[str, tuple[Any, str]] = {
    "dim": (0, "a process has one device; nothing is scattered"),
    "check_reduction": (False, "reductions are always checked"),
    "delay_all_reduce_named_params": (None, "freeze them here, and reduce them by a call"),
    "param_to_hook_all_reduce": (None, "reduce what is delayed by a call of torch.distributed"),
    "mixed_precision": (None, "use torch.autocast, and wire_dtype= for what travels"),
    "skip_all_reduce_unused_params": (False, "find_unused_parameters=True reduces them, as zeros"),
    "bucket_cap_mb_list": (None, "give one size for all, bucket_bytes= or bucket_cap_mb="),
    "batched_grad_copy": (False, "gradients are views of their buckets; nothing is copied"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What all ranks must have alike."""

    bucket_bytes: BucketBytes = DEFAULT
    wire_dtype: torch.dtype | None = None
    op: str = "mean"
    algo: str = "auto"
    find_unused: bool = False
    static_graph: bool = False
    as_views: bool = True
    sync_buffers: bool = False
    broadcast_parameters: bool = True

    def __post_init__(self) -> None:
        if self.op not in ("mean", "sum"):
            raise UsageError(f'op={self.op!r}: must be "mean" or "sum"')
        size = self.bucket_bytes
        if size != AUTO and (not isinstance(size, int) or size < 0):
            raise UsageError(f'bucket_bytes={size!r}: must be 0 or more, or "auto"')
        check_wire_dtype(self.wire_dtype)


def one_of(default: Any, **given: Any) -> Any:
    """The value of an argument that has two names; the default where neither is given."""
    values = {name: value for name, value in given.items() if value is not None}
    if len(values) > 1:
        said = " and ".join(f"{name}={value!r}" for name, value in values.items())
        raise UsageError(f"{said} mean the same argument; give one of them")
    return next(iter(values.values()), default)


def bytes_of(mebibytes: float | None) -> int | None:
    """`bucket_cap_mb` as `bucket_bytes`."""
    return None if mebibytes is None else int(mebibytes * _MIB)


def refuse_unsupported(arguments: Mapping[str, Any]) -> None:
    """Raises UsageError for an argument of torch's that means nothing here, unless it is off.

    TypeError for one that torch does not have either.
    """
    for name, value in arguments.items():
        if name not in _UNSUPPORTED:
            raise TypeError(f"DistributedDataParallel.__init__() has no argument {name!r}")
        off, why = _UNSUPPORTED[name]
        if value is not None and value != off:
            raise UsageError(f"{name}={value!r}: is not supported: {why}")


def check_device_ids(module: nn.Module, ids: Sequence[Any] | None, output: Any) -> None:
    """Raises UsageError unless torch's `device_ids`, `output_device` name the module's device."""
    given = [("device_ids", one) for one in ids or ()]
    given += [("output_device", output)] if output is not None else []
    if len(ids or ()) > 1:
        raise UsageError(
            f"device_ids={list(ids or ())}: a process has one device; give one, or none"
        )
    for name, one in given:
        device = torch.device(one)
        for parameter in module.parameters():
            if parameter.device.type == "cpu" or parameter.device != device:
                raise UsageError(
                    f"{name}={one!r}: the module is on {parameter.device}; leave {name} out, or "
                    f"move the module first, module.to({one!r})"
                )
