"""Where a step runs: which tensors our CUDA kernels take, and how they are handed over."""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from allreduce import cuda

_PLAIN = (Tensor, torch.nn.Parameter)
_GRADIENTS = (torch.float32, torch.bfloat16, torch.float16)


def kernels_on(device: torch.device) -> Any | None:
    """What has the optimizers of `allreduce._cuda` for a device; None where torch does the step."""
    return _built() if device.type == "cuda" else None


_built = functools.cache(cuda.kernels)  # a step must not look for it in the file system


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Tensors of one device, whose gradients have one dtype: what one call takes."""

    kernels: Any
    device: torch.device
    dtype: torch.dtype
    params: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    momenta: list[Tensor] = field(default_factory=list)  # none without momentum

    def sgd(self, weight_decay: float, corrections: Sequence[float], **step: Any) -> None:
        """One step, on the device's current stream; a correction for each tensor."""
        rows = self._rows(weight_decay, corrections)
        with self._launching() as stream:
            self.kernels.sgd(rows, self._dtype_name, stream=stream, **step)

    def lars(self, weight_decay: float, trusts: Sequence[float], **step: Any) -> None:
        """As `sgd`; a trust coefficient for each tensor, or 0 for a plain step."""
        rows = self._rows(weight_decay, trusts)
        floats = self.kernels.lars_workspace([param.numel() for param in self.params])
        with self._launching() as stream:
            # Freed in stream order, behind the kernels.
            space = torch.empty(floats, dtype=torch.float32, device=self.device)
            self.kernels.lars(rows, self._dtype_name, space.data_ptr(), stream=stream, **step)

    @property
    def _dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def _rows(
        self, weight_decay: float, numbers: Sequence[float]
    ) -> list[tuple[int, int, int, int, float, float]]:
        columns = (
            _addresses(self.params),
            _addresses(self.momenta) or itertools.repeat(0),
            _addresses(self.gradients),
            map(Tensor.numel, self.params),
            itertools.repeat(weight_decay),
            numbers,
        )
        return list(zip(*columns, strict=False))

    @contextlib.contextmanager
    def _launching(self) -> Iterator[int]:
        """Make the device current; give its stream. Autograd is told what is written."""
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                yield torch.cuda.current_stream(self.device).cuda_stream
        else:
            yield 0
        torch.autograd.graph.increment_version([*self.params, *self.momenta])


class LastBatch:
    """What a step handed over, if that was all, so that the next one need not look as closely.

    Python's time for each tensor is near that of the GPU: here all are compared in a few passes.
    """

    def __init__(self, batch: Batch) -> None:
        self._batch = replace(batch, gradients=[])
        self._strides = [param.stride() for param in batch.params]
        self._addresses = _addresses([*batch.params, *batch.momenta])

    def again(self, params: Sequence[Tensor], momenta: Sequence[Tensor]) -> Batch | None:
        """The same with these gradients, of which none is None; None if anything has changed."""
        before, now = [*self._batch.params, *self._batch.momenta], [*params, *momenta]
        if len(params) != len(self._strides) or len(now) != len(before):
            return None
        gradients = gradients_of(params)
        if not all(map(operator.is_, now, before)) or {*map(type, gradients)} != {Tensor}:
            return None
        if {(g.layout, g.dtype) for g in gradients} != {(torch.strided, self._batch.dtype)}:
            return None
        if [g.stride() for g in gradients] != self._strides or _addresses(now) != self._addresses:
            return None
        return replace(self._batch, gradients=gradients)


def _addresses(tensors: Sequence[Tensor]) -> list[int]:
    return list(map(Tensor.data_ptr, tensors))


def gradients_of(params: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of parameters that have one."""
    return [gradient for param in params if (gradient := param.grad) is not None]


def split(params: Sequence[Tensor], momenta: Sequence[Tensor]) -> tuple[list[Batch], list[Tensor]]:
    """What our kernels take of the parameters, which have gradients, and what is left to torch.

    momenta: one for each, or none. The kernels take f32 parameters and momenta and gradients of
    f32, bf16 or f16 that fill their memory, all three in the same order (any permutation of the
    dimensions: channels last, say).
    """
    batches: dict[tuple[torch.device, torch.dtype], Batch | None] = {}
    others = []
    for index, param in enumerate(params):
        gradient, own = param.grad, momenta[index : index + 1]
        if gradient is None:
            continue
        key = (param.device, gradient.dtype)
        if key not in batches:
            batches[key] = _begin(*key)
        batch = batches[key]
        if batch is None or not _fit((param, gradient, *own), batch):
            others.append(param)
            continue
        batch.params.append(param)
        batch.gradients.append(gradient)
        batch.momenta.extend(own)
    return [batch for batch in batches.values() if batch and batch.params], others


def _begin(device: torch.device, dtype: torch.dtype) -> Batch | None:
    kernels = kernels_on(device) if dtype in _GRADIENTS else None
    return Batch(kernels=kernels, device=device, dtype=dtype) if kernels else None


def _fit(arrays: Sequence[Tensor], batch: Batch) -> bool:
    """Whether a kernel may take a parameter, its gradient and perhaps its momentum."""
    # Python's time for each tensor is near that of the GPU, so this is a plain loop.
    for place, array in enumerate(arrays):
        if type(array) not in _PLAIN or array.layout is not torch.strided:
            return False  # its address may say nothing
        if array.dtype is not (batch.dtype if place == 1 else torch.float32):
            return False
        if array.device != batch.device:
            return False
    return in_one_order(arrays)


def in_one_order(arrays: Sequence[Tensor]) -> bool:
    """Whether the arrays' elements fill their memory, and lie in it in the same order."""
    if all(array.is_contiguous() for array in arrays):
        return True
    order = _order(arrays[0])
    return _is_dense(order) and all(_order(array) == order for array in arrays[1:])


def _order(tensor: Tensor) -> list[tuple[int, int]]:
    """(stride, size) of each dimension of more than one element."""
    pairs = zip(tensor.stride(), tensor.shape, strict=True)
    return [(stride, size) for stride, size in pairs if size != 1]


def _is_dense(order: Sequence[tuple[int, int]]) -> bool:
    """Whether elements fill their memory, each with a place of its own."""
    expected = 1
    for stride, size in sorted(order):
        if stride != expected:
            return False
        expected *= size
    return True
