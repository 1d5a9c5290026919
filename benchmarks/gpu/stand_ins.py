"""Our kernels on torch's tensors; where there is no GPU, what the same checks can run on instead.

Without a GPU the reduction is that of csrc/reduce, and the rest is torch: that the checks
themselves work is seen then, and nothing about a kernel. `on` says which it was.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from allreduce import _C
from allreduce.optim import LARS, SGD
from benchmarks.gpu.place import CPU_TABLE, STAND_IN, Place

Ranges = Sequence[tuple[int, float]]  # (count, weight decay), one after the other
REFERENCE = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "form": "reference", "correction": 1.0}


def name_of(dtype: torch.dtype) -> str:
    """The core's name of a dtype."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Flat:
    """The arrays of a step: f32 but for the gradients. copy: receives the parameters as bf16."""

    parameters: Tensor
    momenta: Tensor
    gradients: Tensor
    copy: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """Parameters anywhere, which have their gradients, and their weight decays."""

    params: list[nn.Parameter]
    decays: list[float]

    def optimizer(self, kind: type[SGD], **options: Any) -> SGD:
        """Of allreduce.optim, with a group for each weight decay."""
        groups: dict[float, list[nn.Parameter]] = {}
        for param, decay in zip(self.params, self.decays, strict=True):
            groups.setdefault(decay, []).append(param)
        return kind(
            [{"params": found, "weight_decay": decay} for decay, found in groups.items()], **options
        )


class Kernels:
    """Ours, by `allreduce._cuda` on torch's current stream."""

    def __init__(self, place: Place) -> None:
        from allreduce import _cuda

        self.module: Any = _cuda
        self.on_reduce = self.on = place.on("")

    def has(self, name: str) -> bool:
        """Whether this build has a kernel."""
        return hasattr(self.module, name)

    def reduce_many(self, outs: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
        """Each out = the sum of the sources."""
        self.module.reduce_many(
            [t.data_ptr() for t in outs],
            [t.data_ptr() for t in sources],
            name_of(sources[0].dtype),
            "sum",
            sources[0].numel(),
            stream=_stream(),
        )

    def sgd(
        self, flat: Flat, ranges: Ranges, *, correction: float = 1.0, **step: Any
    ) -> Callable[[], None]:
        """Prepare a step, whose tensors are the ranges of flat arrays."""
        arrays = (flat.parameters, flat.momenta, flat.gradients)
        begins = itertools.accumulate((count for count, _ in ranges), initial=0)
        tensors = [
            (*(t.data_ptr() + begin * t.element_size() for t in arrays), *range_, correction)
            for begin, range_ in zip(begins, ranges, strict=False)
        ]
        dtype, copy = name_of(flat.gradients.dtype), flat.copy
        address = copy.data_ptr() if copy is not None else 0
        return lambda: self.module.sgd(tensors, dtype, copy=address, stream=_stream(), **step)

    def lars(self, layers: Layers, trust: float, **step: Any) -> Callable[[], None]:
        """Prepare a step of all layers at once."""
        momenta = [torch.zeros_like(p) for p in layers.params]
        tensors = [
            (
                *(t.data_ptr() for t in (param, momentum, _gradient(param))),
                *(param.numel(), decay, trust if param.ndim > 1 else 0.0),
            )
            for param, momentum, decay in zip(layers.params, momenta, layers.decays, strict=True)
        ]
        floats = self.module.lars_workspace([p.numel() for p in layers.params])
        space = torch.empty(floats, device=layers.params[0].device)

        def call(kept: list[Tensor] = momenta) -> None:
            self.module.lars(tensors, "float32", space.data_ptr(), stream=_stream(), **step)

        return call

    def pack(self, tensors: Sequence[Tensor], flat: Tensor, scale: float = 1.0) -> None:
        """Flat = the tensors one after the other, cast, times scale."""
        self._move(self.module.pack, tensors, flat, scale)

    def unpack(self, tensors: Sequence[Tensor], flat: Tensor, scale: float = 1.0) -> None:
        """The way back."""
        self._move(self.module.unpack, tensors, flat, scale)

    def _move(self, function: Any, tensors: Sequence[Tensor], flat: Tensor, scale: float) -> None:
        function(
            [(t.data_ptr(), t.numel()) for t in tensors],
            name_of(tensors[0].dtype),
            flat.data_ptr(),
            name_of(flat.dtype),
            scale=scale,
            stream=_stream(),
        )


class StandIns:
    """The same calls without a GPU."""

    on_reduce, on = CPU_TABLE, STAND_IN

    def has(self, name: str) -> bool:
        """Whether there is something in a kernel's place."""
        return hasattr(self, name)

    def reduce_many(self, outs: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
        """By csrc/reduce."""
        reduce_on_cpu(outs, sources)

    def sgd(self, flat: Flat, ranges: Ranges, **step: Any) -> Callable[[], None]:
        """By torch, in f32."""

        def call() -> None:
            sgd_by_torch(flat.parameters, flat.momenta, flat.gradients.float(), ranges, **step)
            if flat.copy is not None:
                flat.copy.copy_(flat.parameters)

        return call

    def lars(self, layers: Layers, trust: float, **step: Any) -> Callable[[], None]:
        """By torch, as allreduce.optim does without a GPU."""
        return layers.optimizer(LARS, trust=trust, **step).step

    def pack(self, tensors: Sequence[Tensor], flat: Tensor, scale: float = 1.0) -> None:
        """By torch."""
        flat.copy_(torch.cat([t.flatten() for t in tensors]).float() * scale)

    def unpack(self, tensors: Sequence[Tensor], flat: Tensor, scale: float = 1.0) -> None:
        """By torch."""
        parts = (flat.float() * scale).split([t.numel() for t in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def kernels_here(place: Place) -> Kernels | StandIns:
    """Ours on a GPU, else what stands in."""
    return Kernels(place) if place.gpu else StandIns()


def reduce_on_cpu(outs: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """The CPU's reduce table, on tensors in host memory."""
    name = name_of(sources[0].dtype)
    _C.reduce_many([_array(t) for t in outs], [_array(t) for t in sources], name, "sum")


def sgd_by_torch(
    parameters: Tensor,
    momenta: Tensor,
    gradients: Tensor,
    ranges: Ranges,
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    form: str = "reference",
    correction: float = 1.0,
    scale: float = 1.0,
) -> None:
    """Equations (9) and (10) of the paper, in the arrays' dtype: allreduce/optim/sgd.py."""
    parts = [parameters.new_full((count,), decay) for count, decay in ranges]
    decays = torch.cat(parts) if parts else parameters.new_empty(0)
    step = gradients * scale + decays * parameters
    carry, rate = momentum, lr
    if form == "absorbed":
        step, carry, rate = lr * step, momentum * correction, 1.0
    momenta.mul_(carry).add_(step)
    parameters.sub_(rate * (step + momentum * momenta if nesterov else momenta))


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Host memory as the reduce table takes it: bf16 as its bits."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy()
    return tensor.numpy()


def _gradient(param: nn.Parameter) -> Tensor:
    assert param.grad is not None
    return param.grad


def _stream() -> int:
    return int(torch.cuda.current_stream().cuda_stream)
