"""Whether all processes hold the same weights and momentum: a hash of each is compared."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from trainer.errors import TrainerError

if TYPE_CHECKING:
    from allreduce import Communicator

__all__ = ["ReplicaError", "Replicas", "fingerprint"]

_AT_ONCE = 1 << 20  # numbers that are hashed at a time; their weights are kept on the device
_BYTES = 16  # of a fingerprint
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class ReplicaError(TrainerError, RuntimeError):
    """Processes that should train the same network hold different ones; it names the ranks."""


class Replicas:
    """Compares the replicas of all processes, every `every` iterations (0: never).

    The network is equal on all processes by construction: equal gradients give equal updates. A
    process that differs has faulty memory, a faulty processor, or was changed from outside.
    """

    def __init__(self, comm: Communicator, optimizer: Optimizer, every: int) -> None:
        self._comm, self._optimizer, self._every = comm, optimizer, every
        self._equal: int | None = None  # the last iteration after which they were

    def check(self, iteration: int) -> None:
        """Compares after `iteration` iterations if it is time to; every process calls it.

        ReplicaError on every process if one differs: the ranks outside of the majority are named,
        or, where there is none, all in their groups.
        """
        if not self._every or iteration % self._every:
            return
        mine = np.frombuffer(fingerprint(_tensors(self._optimizer)), np.uint8).copy()
        table = self._comm.allgather(mine).reshape(self._comm.world_size, _BYTES)
        groups: dict[bytes, list[int]] = {}
        for rank, row in enumerate(table):
            groups.setdefault(row.tobytes(), []).append(rank)
        if len(groups) > 1:
            raise ReplicaError(self._words(list(groups.values()), iteration))
        self._equal = iteration

    def _words(self, groups: list[list[int]], iteration: int) -> str:
        most = max(groups, key=len)
        wrong = sorted(rank for ranks in groups if ranks is not most for rank in ranks)
        majority = 2 * len(most) > self._comm.world_size
        who = f"those of {_ranks(wrong)} are not those of the {len(most)} other ranks"
        if not majority:
            who = f"those of {', of '.join(map(_ranks, groups))} differ, and none is a majority"
        words = f"after iteration {iteration} parameters or momentum are not alike: {who}; "
        words += (
            "they were never compared before"
            if self._equal is None
            else (f"they were alike after iteration {self._equal}")
        )
        if 0 in wrong or not majority:
            words += "; checkpoints hold what rank 0 had, so go on from one of before"
        return words


def fingerprint(tensors: Iterable[Tensor]) -> bytes:
    """16 bytes that change with any bit of the tensors, or where two numbers change places.

    The sum of (2 i + 1) x[i] modulo 2^64, over the numbers of a tensor as integers, is made where
    the tensor lies, in whatever order, and is exact.
    """
    sums: list[Tensor] = []
    weights: dict[torch.device, Tensor] = {}
    for tensor in tensors:
        flat = tensor.detach().reshape(-1)
        flat = flat.view(_INTEGERS[flat.element_size()])
        odd = weights.get(flat.device)
        if odd is None:
            odd = torch.arange(1, 2 * _AT_ONCE, 2, device=flat.device)
            weights[flat.device] = odd
        sums += [(odd[: len(part)] * part).sum() for part in torch.split(flat, _AT_ONCE)]
    numbers = torch.stack(sums).cpu().numpy()  # one copy: the host waits for the device once
    return hashlib.blake2b(numbers.tobytes(), digest_size=_BYTES).digest()


def _tensors(optimizer: Optimizer) -> Iterable[Tensor]:
    """Parameters, and what the optimizer keeps of each, by name."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield parameter
            state = optimizer.state.get(parameter, {})
            yield from (state[name] for name in sorted(state) if torch.is_tensor(state[name]))


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
