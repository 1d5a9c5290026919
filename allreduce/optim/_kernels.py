"""Where a step runs: which tensors our CUDA kernels take, and how they are handed over."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
    """Tensors of one device, whose gradients have one dtype: what one call takes.

    places: where they lie (`_C.OptimizerTensors`); a step writes its numbers beside that.
    """

    kernels: Any
    params: list[Tensor]
    gradients: list[Tensor]  # kept until the kernels are launched
    momenta: list[Tensor]  # none without momentum
    places: Any
    dtype: str  # of the gradients, as the kernels name it

    def sgd(self, weight_decay: float, corrections: Sequence[float], **step: Any) -> None:
        """One step, on the device's current stream; a correction for each tensor."""
        self.places.set_numbers(weight_decay, corrections)
        with self._launching() as stream:
            self.kernels.sgd(self.places, self.dtype, stream=stream, **step)

    def lars(self, weight_decay: float, trusts: Sequence[float], **step: Any) -> None:
        """As `sgd`; a trust coefficient for each tensor, or 0 for a plain step."""
        self.places.set_numbers(weight_decay, trusts)
        floats = self.kernels.lars_workspace(self.places.counts)
        with self._launching() as stream:
            # Freed in stream order, behind the kernels.
            space = torch.empty(floats, dtype=torch.float32, device=self.params[0].device)
            self.kernels.lars(self.places, self.dtype, space.data_ptr(), stream=stream, **step)

    @contextlib.contextmanager
    def _launching(self) -> Iterator[int]:
        """Make the device current; give its stream. Autograd is told what is written."""
        device = self.params[0].device
        if device.type == "cuda":
            with torch.cuda.device(device):
                yield torch.cuda.current_stream(device).cuda_stream
        else:
            yield 0
        torch.autograd.graph.increment_version([*self.params, *self.momenta])


def split(
    params: list[Tensor], gradients: list[Tensor], momenta: list[Tensor]
) -> tuple[list[Batch], list[Tensor]]:
    """What our kernels take of the parameters, and those that are left to torch.

    gradients: one for each; momenta: one for each, or none. The kernels take f32 parameters and
    momenta and gradients of f32, bf16 or f16 that fill their memory, all three in the same order
    (any permutation of the dimensions: channels last, say).

    Nothing is remembered from step to step, so nothing can be out of date: gradients may lie
    elsewhere each time, and parameters too.
    """
    whole = _whole(params, gradients, momenta)
    return ([whole], []) if whole else _sorted(params, gradients, momenta)


def _whole(params: list[Tensor], gradients: list[Tensor], momenta: list[Tensor]) -> Batch | None:
    """All in one batch, as most often they can be; None if they cannot, or torch is too old.

    The core reads them: Python's time for each tensor would be above that of the GPU.
    """
    kernels = kernels_on(params[0].device)
    reader = _reader() if kernels else None
    places = reader.read(params, gradients, momenta) if reader else None
    if places is None:
        return None
    return Batch(
        kernels=kernels,
        params=params,
        gradients=gradients,
        momenta=momenta,
        places=places,
        dtype=places.dtype,
    )


@functools.cache
def _reader() -> Any | None:
    from allreduce import _C  # there, since the kernels are

    api = getattr(Tensor, "__dlpack_c_exchange_api__", None)  # torch 2.9 has none
    return api and _C.TensorReader(api, _PLAIN)


def _sorted(
    params: list[Tensor], gradients: list[Tensor], momenta: list[Tensor]
) -> tuple[list[Batch], list[Tensor]]:
    """As `split`, by a look at each."""
    fitting: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    others = []
    for index, (param, gradient) in enumerate(zip(params, gradients, strict=True)):
        if _fit(param, gradient, *momenta[index : index + 1]):
            fitting.setdefault((param.device, gradient.dtype), []).append(index)
        else:
            others.append(param)
    columns = (params, gradients, momenta)
    batches = []
    for (device, dtype), indices in fitting.items():
        chosen = [[column[i] for i in indices] if column else [] for column in columns]
        batches.append(_batch(kernels_on(device), dtype, *chosen))
    return batches, others


def _batch(
    kernels: Any,
    dtype: torch.dtype,
    params: list[Tensor],
    gradients: list[Tensor],
    momenta: list[Tensor],
) -> Batch:
    from allreduce import _C

    rows = zip(
        map(Tensor.data_ptr, params),
        map(Tensor.data_ptr, momenta) if momenta else itertools.repeat(0),
        map(Tensor.data_ptr, gradients),
        map(Tensor.numel, params),
        itertools.repeat(0.0),
        itertools.repeat(0.0),
        strict=False,
    )
    return Batch(
        kernels=kernels,
        params=params,
        gradients=gradients,
        momenta=momenta,
        places=_C.OptimizerTensors(list(rows)),
        dtype=str(dtype).removeprefix("torch."),
    )


def _fit(*arrays: Tensor) -> bool:
    """Whether a kernel may take a parameter, its gradient and perhaps its momentum."""
    device = arrays[0].device
    if arrays[1].dtype not in _GRADIENTS or kernels_on(device) is None:
        return False
    for place, array in enumerate(arrays):
        if type(array) not in _PLAIN or array.layout is not torch.strided:
            return False  # its address may say nothing
        if array.device != device or (place != 1 and array.dtype is not torch.float32):
            return False
    return in_one_order(arrays)


def in_one_order(arrays: Sequence[Tensor]) -> bool:
    """Whether the arrays' elements fill their memory, and lie in it in the same order."""
    if any(array.shape != arrays[0].shape for array in arrays):
        return False
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
