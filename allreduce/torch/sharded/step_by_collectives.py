"""A step of ShardedSGD as three calls: reduce-scatter, SGD on the own shard, allgather."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from allreduce.communicator.communicator import Communicator
from allreduce.optim import SGD
from allreduce.torch.ddp import buckets

__all__ = ["ShardedStep"]


class ShardedStep:
    """Any number of ranks on any nodes: the flat arrays are cut into one shard for each rank."""

    def __init__(self, comm: Communicator, like: Tensor, ends: Sequence[int], algo: str) -> None:
        self._comm, self._algo = comm, algo
        shard = buckets.aligned(-(-ends[-1] // comm.world_size), like.dtype)
        count = comm.world_size * shard
        self.flat = buckets.memory(comm, count, like.dtype, like.device)
        self.gradients = buckets.memory(comm, count, like.dtype, like.device)
        self._parts, self._groups = [], []  # one for each group that has a part of the shard
        for number, (begin, end) in enumerate(pairwise([0, *ends])):
            first, last = max(begin, comm.rank * shard), min(end, (comm.rank + 1) * shard)
            if first < last:
                part = self.flat[first:last]
                part.grad = self.gradients[first:last]
                self._parts.append(part)
                self._groups.append(number)
        parts = [{"params": [part]} for part in self._parts]
        self._own = SGD(parts, lr=0.0) if parts else None

    def step(self, groups: Sequence[Mapping[str, Any]], scale: float, name: str) -> None:
        """Takes a step of all groups. scale: of the gradients. name: the same on all ranks."""
        if scale != 1.0:
            self.gradients.mul_(scale)
        self._comm.reduce_scatter(self.gradients, "sum", self._algo, in_place=True, name=name)
        if self._own:
            for part, number in zip(self._own.param_groups, self._groups, strict=True):
                part.update({key: x for key, x in groups[number].items() if key != "params"})
            self._own.step()
        self._comm.allgather(self.flat, in_place=True)

    def momenta(self) -> list[tuple[int, Tensor]]:
        """This rank's parts of the momentum, and where each begins in the flat arrays."""
        found = [(part, self._state(part).get("momentum")) for part in self._parts]
        return [(self._begin(part), momentum) for part, momentum in found if momentum is not None]

    def load(self, whole: Tensor) -> None:
        """Takes this rank's parts of a flat momentum."""
        for part in self._parts:
            begin = self._begin(part)
            self._state(part)["momentum"] = whole[begin : begin + part.numel()].clone()

    def _begin(self, part: Tensor) -> int:
        return int(part.storage_offset() - self.flat.storage_offset())

    def _state(self, part: Tensor) -> dict[str, Any]:
        assert self._own is not None
        state: dict[str, Any] = self._own.state[part]
        return state
