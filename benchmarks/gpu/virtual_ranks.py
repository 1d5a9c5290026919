"""Virtual ranks on the one GPU: each has a stream, and kernels that wait for those of the others.

Without a GPU torch stands in: each rank's part is computed for itself, and nothing waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.place import Place
from benchmarks.gpu.stand_ins import Kernels, Ranges, StandIns, name_of, sgd_by_torch

FUSED_STEP: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "scale": 0.125}
_TIMEOUT = 5.0  # seconds that a kernel waits for a peer
_FUNCTIONS = ("signals_bytes", "reduce_scatter", "allgather", "reduce_scatter_sgd_allgather")
_GROUP = 8  # elements: shards are multiples


class Peers:
    """The virtual ranks' signals and streams, and the collectives as one of them calls them."""

    def __init__(self, ours: Kernels | StandIns, place: Place, size: int) -> None:
        self._module: Any = ours.module if isinstance(ours, Kernels) else None
        self._size = size
        nbytes = self._module.signals_bytes() if self._module else 4
        self._signals = [
            torch.zeros(nbytes, dtype=torch.uint8, device=place.device) for _ in range(size)
        ]
        self._streams = [torch.cuda.Stream() for _ in range(size)] if self._module else []

    @staticmethod
    def are_in(ours: Kernels | StandIns) -> bool:
        """Whether this build has the kernels."""
        return isinstance(ours, StandIns) or all(map(ours.has, _FUNCTIONS))

    def each(self, call: Callable[[int], object]) -> None:
        """Enqueue a call of every rank on its stream, behind and before torch's current stream."""
        if not self._streams:
            for rank in range(self._size):
                call(rank)
            return
        current = torch.cuda.current_stream()
        for rank, stream in enumerate(self._streams):
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                call(rank)
        for stream in self._streams:
            current.wait_stream(stream)

    def error(self) -> str:
        """What a kernel that left early has written; "" if none did."""
        words = [int(signals.view(torch.int32)[-1]) for signals in self._signals]
        return f"error words of the ranks: {words}" if any(words) else ""

    def shard(self, count: int, rank: int) -> tuple[int, int]:
        """The part of an array that a rank owns."""
        if self._module:
            begin, end = self._module.shard_of(count, self._size, rank)
            return int(begin), int(end)
        groups = (count + _GROUP - 1) // _GROUP
        size = (groups + self._size - 1) // self._size * _GROUP
        return min(count, rank * size), min(count, (rank + 1) * size)

    def reduce_scatter(
        self, rank: int, inputs: Sequence[Tensor], shard: Tensor, scale: float
    ) -> None:
        """Shard (f32) = scale * the sum of this part of all inputs."""
        if self._module:
            self._module.reduce_scatter(
                *self._group(rank),
                _addresses(inputs),
                name_of(inputs[0].dtype),
                _address(shard),
                inputs[0].numel(),
                scale,
                _stream(),
            )
            return
        begin, end = self.shard(inputs[0].numel(), rank)
        shard.copy_(torch.stack([t[begin:end].float() for t in inputs]).sum(0) * scale)

    def allgather(self, rank: int, shard: Tensor, outputs: Sequence[Tensor]) -> None:
        """This part of all outputs = shard (f32)."""
        if self._module:
            self._module.allgather(
                *self._group(rank),
                _address(shard),
                _addresses(outputs),
                name_of(outputs[0].dtype),
                outputs[0].numel(),
                _stream(),
            )
            return
        begin, end = self.shard(outputs[0].numel(), rank)
        for output in outputs:
            output[begin:end].copy_(shard)

    def fused(
        self,
        rank: int,
        gradients: Sequence[Tensor],
        outputs: Sequence[Tensor],
        parameters: Tensor,
        momenta: Tensor,
        ranges: Ranges,
        step: dict[str, Any],
    ) -> None:
        """Sum this part of the gradients, step, and write the new parameters to all outputs."""
        if self._module:
            self._module.reduce_scatter_sgd_allgather(
                *self._group(rank),
                _addresses(gradients),
                _addresses(outputs),
                name_of(gradients[0].dtype),
                _address(parameters),
                _address(momenta),
                list(ranges),
                stream=_stream(),
                **step,
            )
            return
        begin, end = self.shard(gradients[0].numel(), rank)
        total = torch.stack([t[begin:end].float() for t in gradients]).sum(0)
        sgd_by_torch(parameters, momenta, total, cut(ranges, begin, end), **step)
        for output in outputs:
            output[begin:end].copy_(parameters)

    def _group(self, rank: int) -> tuple[list[int], int, float]:
        return _addresses(self._signals), rank, _TIMEOUT


def cut(ranges: Ranges, begin: int, end: int) -> list[tuple[int, float]]:
    """What of the ranges lies between two places."""
    found, place = [], 0
    for count, decay in ranges:
        inside = min(place + count, end) - max(place, begin)
        if inside > 0:
            found.append((inside, decay))
        place += count
    return found


def _addresses(tensors: Sequence[Tensor]) -> list[int]:
    return [_address(tensor) for tensor in tensors]


def _address(tensor: Tensor) -> int:
    """As data_ptr, which says 0 of an empty shard."""
    place = tensor.storage_offset() * tensor.element_size()
    return int(tensor.untyped_storage().data_ptr()) + place


def _stream() -> int:
    return int(torch.cuda.current_stream().cuda_stream)
