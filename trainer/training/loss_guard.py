"""Before each update: is the loss sound, and does anybody want to stop? All workers agree."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from trainer.errors import TrainerError

if TYPE_CHECKING:
    from allreduce import Communicator
    from trainer.config.options import Config
    from trainer.launch.stop_signals import StopRequest

__all__ = ["BadLoss", "Guard"]

_MOST_SKIPPED = 10  # in a row; the weights are then beyond repair
_EXPLODED = 20.0  # times the loss of guessing, ln(classes), with which the paper's networks begin


class BadLoss(TrainerError, FloatingPointError):
    """The loss of a worker is not finite, or has exploded."""


class Guard:
    """Judges each iteration, on all processes alike, by one allreduce of two integers.

    A loss is bad if it is not finite or above --max-loss (0: 20 ln(classes)). With --on-bad-loss
    skip the update is left out then, and the normalisation statistics `buffers` of this process
    stay as they were.

    On a GPU the loss must be read before the update: the host waits for the backward pass once an
    iteration, and the optimizer's kernels are enqueued only then.
    """

    def __init__(
        self,
        config: Config,
        comm: Communicator,
        buffers: Iterable[Tensor],
        classes: int,
        request: StopRequest,
    ) -> None:
        self._comm, self._request = comm, request
        self._buffers = list(buffers)
        self._before = [buffer.clone() for buffer in self._buffers]
        self._limit = config.max_loss or _EXPLODED * math.log(max(classes, 2))
        self._skip = config.on_bad_loss == "skip"
        self._worst, self._in_a_row = 0.0, 0
        self.skipped = 0  # updates left out so far
        self.under_way = False  # an iteration has begun, and nobody knows whether it is sound
        self.updated = True  # the last one that ended made its update
        self.stopping = False  # all workers have agreed to save and end

    def begin(self) -> None:
        """Before an iteration's forward passes."""
        if self._buffers:
            torch._foreach_copy_(self._before, self._buffers)
        self._worst = 0.0
        self.under_way = True

    @property
    def before(self) -> list[Tensor]:
        """The buffers as they were when the iteration began."""
        return self._before

    def see(self, loss: float) -> None:
        """A worker's loss, the mean over its images."""
        if not math.isnan(self._worst) and not loss <= self._worst:  # not a number is the worst
            self._worst = loss

    def sound(self, iteration: int) -> bool:
        """Whether to make the update; agrees on `stopping`, too. Every process calls it.

        BadLoss on every process if a loss is bad and may not be skipped, or was 10 times in a row.
        """
        comm = self._comm
        bad = not self._worst <= self._limit
        votes = np.array([bad * (comm.world_size - comm.rank), self._request.number], np.int64)
        comm.allreduce(votes, op="max")
        self.stopping = bool(votes[1])
        if not votes[0]:
            self._in_a_row = 0
            self.under_way, self.updated = False, True
            return True
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._before)
        culprit = comm.world_size - int(votes[0])
        self.skipped += 1
        self._in_a_row += 1
        if not self._skip or self._in_a_row == _MOST_SKIPPED:
            raise BadLoss(self._words(culprit, iteration))
        self.under_way, self.updated = False, False
        return False

    def ask(self) -> bool:
        """Whether all agree to save and end, outside an iteration. Every process calls it."""
        vote = np.array([self._request.number], np.int64)
        self._comm.allreduce(vote, op="max")
        self.stopping = bool(vote[0])
        return self.stopping

    def _words(self, culprit: int, iteration: int) -> str:
        loss = float(self._comm.broadcast(np.array([self._worst]), root=culprit)[0])
        limit = "" if not math.isfinite(loss) else f", above the limit of {self._limit:.3g}"
        times = f", the {self._in_a_row}th in a row" if self._in_a_row > 1 else ""
        return (
            f"the loss of rank {culprit} is {loss:.4g}{limit} in iteration {iteration}{times}: "
            "training diverged; lower --lr or raise --warmup-epochs"
        )
