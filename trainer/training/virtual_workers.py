"""Virtual workers: several workers of n images in one process, as footnote 5 of the paper does.

Each has batch normalisation statistics of its own, and their gradients are added along the same
tree as those of processes, so that k virtual workers and k processes train the same weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from trainer.model.ghost_batch_norm import GhostBatchNorm2d

if TYPE_CHECKING:
    from allreduce.torch import DistributedDataParallel

__all__ = ["VirtualWorkers"]

Buffers = list[Tensor]


class VirtualWorkers:
    """The `count` workers of process `rank`: rank x count and the following ones of the job.

    They take turns with the one network: a turn is a forward and a backward pass over n images
    with the worker's own statistics. The pass of the last turn reduces over processes, too. Between
    iterations the network has the statistics of the first of them.

    Sums follow tree(p) = tree(largest power of two <= p) + tree(the rest) over workers in order.
    That is the order of the allreduce algorithms of canonical order, so if `count` is a power of
    two (or there is one process), the bits do not depend on how workers are spread over processes.

    If the network has ghost batch normalisation there is one turn, which has all images.
    """

    def __init__(self, model: DistributedDataParallel, *, count: int, rank: int = 0) -> None:
        self.count = count
        self._first = rank * count
        self._model = model
        self._parameters = [p for p in model.module.parameters() if p.requires_grad]
        self._owners = [
            (module, name)
            for module in model.module.modules()
            for name, _ in module.named_buffers(recurse=False)
        ]
        self._names = [name for name, _ in model.module.named_buffers()]
        self._ghost = any(isinstance(m, GhostBatchNorm2d) for m in model.module.modules())
        self._buffers = [self._own_buffers(worker) for worker in range(count)]
        self._sums: list[tuple[int, list[Tensor]]] = []  # of how many workers, their gradients
        self._last = False  # the last worker of this iteration has its turn
        if count > 1 and not self._ghost:
            for index, parameter in enumerate(self._parameters):
                parameter.register_hook(self._adder(index))  # type: ignore[no-untyped-call]

    @property
    def workers(self) -> range:
        """Which workers of the job live here."""
        return range(self._first, self._first + self.count)

    def turns(self, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Deals out this process's images of one iteration, worker by worker.

        `images` and `labels` have count x n rows, those of the first worker first. The loop body
        runs the forward and the backward pass of what it gets.
        """
        if self.count == 1:
            yield images, labels
        elif self._ghost:
            yield _interleaved(images, self.count), _interleaved(labels, self.count)
        else:
            pairs = zip(images.chunk(self.count), labels.chunk(self.count), strict=True)
            for worker, (its_images, its_labels) in enumerate(pairs):
                self._last = worker == self.count - 1
                self._wear(worker)
                with contextlib.nullcontext() if self._last else self._model.no_sync():
                    yield its_images, its_labels
                if not self._last:
                    self._keep_gradients()
            self._last = False
            self._sums.clear()
            self._wear(0)

    def state_dict(self) -> dict[str, Tensor]:
        """The buffers of each worker here, as "3.layer1.0.bn1.running_mean" for worker 3."""
        return {
            f"{worker}.{name}": buffer
            for worker, buffers in enumerate(self.statistics(), start=self._first)
            for name, buffer in buffers.items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copies the buffers of each worker here from `state`; KeyError if it lacks one."""
        for name, buffer in self.state_dict().items():
            buffer.copy_(state[name])

    def statistics(self) -> list[dict[str, Tensor]]:
        """The buffers of each worker here, by their names in the network."""
        return [dict(zip(self._names, buffers, strict=True)) for buffers in self._buffers]

    def _own_buffers(self, worker: int) -> Buffers:
        if self._ghost:
            return [_row(module, name, worker) for module, name in self._owners]
        buffers = list(self._model.module.buffers())
        return buffers if worker == 0 else [buffer.clone() for buffer in buffers]

    def _wear(self, worker: int) -> None:
        for (module, name), buffer in zip(self._owners, self._buffers[worker], strict=True):
            module._buffers[name] = buffer

    def _keep_gradients(self) -> None:
        """Takes a worker's gradients away; sums of as many workers are added, as in a counter."""
        gradients = []
        for parameter in self._parameters:
            assert parameter.grad is not None, "every parameter takes part in every pass"
            gradients.append(parameter.grad)
            parameter.grad = None
        size = 1
        while self._sums and self._sums[-1][0] == size:
            _, older = self._sums.pop()
            torch._foreach_add_(older, gradients)
            size, gradients = 2 * size, older
        self._sums.append((size, gradients))

    def _adder(self, index: int) -> Callable[[Tensor], Tensor]:
        """A hook that adds what the others had to the gradient of the last worker, newest first."""

        def add(gradient: Tensor) -> Tensor:
            if self._last:
                for _, older in reversed(self._sums):
                    gradient = older[index] + gradient
            return gradient

        return add


def _interleaved(rows: Tensor, workers: int) -> Tensor:
    """Row i of each worker, then row i + 1 of each: the order that ghost normalisation wants."""
    return rows.view(workers, -1, *rows.shape[1:]).transpose(0, 1).flatten(0, 1)


def _row(module: nn.Module, name: str, worker: int) -> Tensor:
    assert isinstance(module, GhostBatchNorm2d), f"{type(module).__name__} has buffers of its own"
    return module.of_worker(name, worker)
