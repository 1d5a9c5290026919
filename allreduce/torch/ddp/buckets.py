"""Gradient buckets: which parameters share one, and their memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from allreduce.communicator.types import DType
from allreduce.errors import UsageError

if TYPE_CHECKING:
    from allreduce.communicator.communicator import Communicator
    from allreduce.communicator.work import Work
    from allreduce.torch.ddp.hooks import HookWork

__all__ = [
    "Bucket",
    "aligned",
    "allocate",
    "check_dtype",
    "lies_in",
    "memory",
    "plan",
    "travels_as",
    "view_like",
    "why_not_reduced",
]

_ALIGN = 64  # bytes: each gradient begins on a cache line of its own
_DTYPES = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.complex64,  # reduced as pairs of floats
    torch.complex128,
)


@dataclass(slots=True)
class Bucket:
    """Gradients that are reduced together: one range of symmetric or device memory, of one dtype.

    packed: its gradients stay outside, and are packed all at once, maybe into another dtype.
    streams: on a device, those which fill it in this backward pass.
    """

    name: str  # checked to be the same on all ranks
    members: tuple[int, ...]  # indices of parameters
    flat: Tensor  # the whole bucket, one-dimensional and real
    packed: bool
    streams: set[torch.Stream] = field(default_factory=set, repr=False)
    missing: int = 0  # gradients of this backward pass that are still to come
    work: Work | HookWork | None = field(default=None, repr=False)


def travels_as(parameter: Tensor, wire_dtype: torch.dtype | None) -> torch.dtype:
    """The dtype in which a parameter's gradient is reduced: `wire_dtype` is for float32 alone."""
    return wire_dtype if wire_dtype and parameter.dtype == torch.float32 else parameter.dtype


def plan(
    parameters: Sequence[Tensor],
    order: Sequence[int],
    bucket_bytes: int,
    wire_dtype: torch.dtype | None = None,
) -> list[tuple[int, ...]]:
    """Cuts `order`, indices of parameters as their gradients become ready, into buckets.

    A bucket has one dtype and at most `bucket_bytes` bytes, as they travel, but always one
    gradient: 0 gives one bucket per parameter. Buckets come in the order in which they become
    complete.
    """
    closed: list[tuple[int, ...]] = []
    open_members: dict[torch.dtype, list[int]] = {}
    open_bytes: dict[torch.dtype, int] = {}
    for index in order:
        dtype = parameters[index].dtype
        nbytes = parameters[index].numel() * travels_as(parameters[index], wire_dtype).itemsize
        if dtype in open_members and open_bytes[dtype] + nbytes > bucket_bytes:
            closed.append(tuple(open_members.pop(dtype)))
        open_bytes[dtype] = nbytes + (open_bytes[dtype] if dtype in open_members else 0)
        open_members.setdefault(dtype, []).append(index)
    closed += [tuple(members) for members in open_members.values()]
    place = {index: position for position, index in enumerate(order)}
    return sorted(closed, key=lambda members: place[members[-1]])


def allocate(
    comm: Communicator,
    parameters: Sequence[Tensor],
    buckets: Sequence[tuple[int, ...]],
    wire_dtype: torch.dtype | None = None,
    as_views: bool = True,
) -> tuple[list[Bucket], list[Tensor]]:
    """Returns the buckets and, for each parameter, its gradient's place: a view like the parameter.

    as_views: gradients are these places, unless they travel in another dtype.

    One piece of memory for each dtype, symmetric if the parameters are on the CPU; all ranks must
    call it with the same arguments.
    """
    ends: dict[torch.dtype, int] = {}  # of the parameters' dtypes: elements so far
    begins: dict[int, int] = {}
    spans = []
    for members in buckets:
        dtype = parameters[members[0]].dtype
        travels = travels_as(parameters[members[0]], wire_dtype)
        begin = end = ends.get(dtype, 0)
        for index in members:
            begins[index] = end
            end += parameters[index].numel()
            if travels == dtype:  # packed gradients have no gaps
                end = aligned(end, travels)
        ends[dtype] = aligned(end, travels)
        spans.append((dtype, begin, ends[dtype], travels != dtype or not as_views))
    memories = {
        dtype: memory(
            comm,
            count,
            wire_dtype if wire_dtype and dtype == torch.float32 else dtype,
            parameters[0].device,
        )
        for dtype, count in ends.items()
    }
    made = [
        Bucket(
            f"gradients {number} of {len(buckets)}",
            members,
            _real(memories[dtype][begin:end]),
            packed,
        )
        for number, (members, (dtype, begin, end, packed)) in enumerate(
            zip(buckets, spans, strict=True), 1
        )
    ]
    views = [view_like(p, memories[p.dtype], begins[i]) for i, p in enumerate(parameters)]
    return made, views


def check_dtype(name: str, parameter: Tensor) -> None:
    """Raises UsageError if gradients of this dtype cannot be reduced."""
    if parameter.dtype not in _DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        raise UsageError(
            f"module: parameter {name} has dtype {parameter.dtype}; gradients can be {names}. "
            "Convert the module, or exclude the parameter by requires_grad_(False)"
        )


def why_not_reduced(grad: Tensor | None) -> str:
    """What a gradient has that no bucket can take; "" if there is nothing."""
    if grad is not None and grad.requires_grad:
        return (
            "got a gradient by backward(create_graph=True), and no graph leads through the "
            "reduction; take gradients of gradients by torch.autograd.grad(..., "
            "create_graph=True), which reduces nothing, then call backward()"
        )
    if grad is not None and grad.layout != torch.strided:
        return "has a sparse gradient; use a dense one (sparse=False in nn.Embedding)"
    return ""


def aligned(count: int, dtype: torch.dtype) -> int:
    """The next number of elements that ends a cache line."""
    align = _ALIGN // dtype.itemsize
    return -(-count // align) * align


def memory(comm: Communicator, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Flat zeros: in symmetric memory, for which every rank calls it alike, or on a device."""
    if device.type != "cpu":
        return torch.zeros(count, dtype=dtype, device=device)
    real = dtype.to_real()
    if real != dtype:
        return memory(comm, 2 * count, real, device).view(dtype)
    name = cast(DType, str(dtype).removeprefix("torch."))
    array = comm.symmetric_empty(count, name)
    return torch.from_numpy(array).view(dtype)  # NumPy has bfloat16 as uint16


def lies_in(tensor: Tensor | None, place: Tensor) -> bool:
    """Whether a tensor is its place. Its object does not say: `.data` of it may be replaced."""
    return (
        tensor is not None
        and tensor.layout == torch.strided
        and tensor.data_ptr() == place.data_ptr()
        and tensor.stride() == place.stride()
    )


def _real(flat: Tensor) -> Tensor:
    """The same memory, complex numbers as two."""
    return torch.view_as_real(flat).flatten() if flat.is_complex() else flat


def view_like(parameter: Tensor, whole: Tensor, begin: int) -> Tensor:
    """A view with the parameter's strides where these are dense: autograd then adds in place."""
    flat = whole[begin : begin + parameter.numel()]
    if torch.ops.aten.is_non_overlapping_and_dense(parameter):
        return flat.as_strided(parameter.size(), parameter.stride())
    return flat.view(parameter.size())
