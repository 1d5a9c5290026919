"""Gradients into a bucket of another dtype and back: scaled, cast and moved in one go.

On a GPU that is one kernel for a bucket, `_cuda.pack` or `_cuda.unpack`; elsewhere, and for
gradients that do not lie as their parameters do, torch's operations, one gradient at a time. Both
compute in float32 and round to nearest even, so they give the same bits. All of it is enqueued on
the current stream; the host waits for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from allreduce import cuda
from allreduce.errors import UsageError
from allreduce.torch import streams

__all__ = ["check_wire_dtype", "pack", "unpack"]

_DTYPES = (torch.bfloat16, torch.float16)


def check_wire_dtype(dtype: torch.dtype | None) -> None:
    """Raises UsageError if float32 gradients cannot travel as this dtype."""
    if dtype is not None and dtype not in _DTYPES:
        raise UsageError(
            f"wire_dtype={dtype!r}: must be torch.bfloat16, torch.float16, or None, with which "
            "gradients travel in their own dtype"
        )


def pack(
    flat: Tensor, places: Sequence[Tensor], gradients: Sequence[Tensor | None], scale: float
) -> None:
    """Fills the places of `flat`, which have no gaps, by scale times the gradients; None is 0."""
    tensors = [gradient for gradient in gradients if gradient is not None]
    kernels = _kernels(flat)
    if kernels and len(tensors) == len(gradients) and _lie_alike(tensors, places):
        with torch.cuda.device_of(flat):  # type: ignore[no-untyped-call]
            kernels.pack(
                *_addresses(tensors, flat), scale=scale, stream=streams.handle(flat.device)
            )
        return
    for place, gradient in zip(places, gradients, strict=True):
        if gradient is None:
            place.zero_()
        else:
            torch.mul(gradient, scale, out=place)


def unpack(flat: Tensor, places: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Overwrites the gradients by what is in their places; None stays."""
    pairs = [(g, place) for g, place in zip(gradients, places, strict=True) if g is not None]
    if not pairs:
        return
    tensors = [gradient for gradient, _ in pairs]
    kernels = _kernels(flat)
    if kernels and len(tensors) == len(gradients) and _lie_alike(tensors, places):
        with torch.cuda.device_of(flat):  # type: ignore[no-untyped-call]
            kernels.unpack(*_addresses(tensors, flat), stream=streams.handle(flat.device))
        return
    torch._foreach_copy_(tensors, [place for _, place in pairs])


def _kernels(flat: Tensor) -> ModuleType | None:
    return cuda.kernels() if flat.device.type == "cuda" and flat.dtype in _DTYPES else None


def _lie_alike(tensors: Sequence[Tensor], places: Sequence[Tensor]) -> bool:
    """Whether each tensor's elements are in memory in the order of its place: float32, no gaps."""
    return all(
        tensor.dtype == torch.float32 and tensor.stride() == place.stride()
        for tensor, place in zip(tensors, places, strict=True)
    )


def _addresses(
    tensors: Sequence[Tensor], flat: Tensor
) -> tuple[list[tuple[int, int]], str, int, str]:
    """The arguments that both kernels have."""
    where = [(tensor.data_ptr(), tensor.numel()) for tensor in tensors]
    return where, "float32", flat.data_ptr(), str(flat.dtype).removeprefix("torch.")
