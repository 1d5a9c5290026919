"""Ghost batch normalisation: many workers' batches in one pass, each normalised by itself.

(Hoffer, Hubara and Soudry 2017, "Train longer, generalize better".) The mathematics is that of the
workers' own passes; only the order of the sums over images, so the last bits, differ.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["GhostBatchNorm2d", "ghost"]


class GhostBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d over `workers` batches that come interleaved: image i of worker w is row i v + w.

    So a batch (n v, c, h, w) is, without a copy, n images of v x c channels, which are normalised
    one by one. Each worker has running statistics of its own; the buffers, which evaluation uses,
    are those of the first worker.
    """

    def __init__(self, of: nn.BatchNorm2d, workers: int) -> None:
        super().__init__(of.num_features, of.eps, of.momentum, device=of.weight.device)
        self.weight, self.bias = of.weight, of.bias
        self.workers = workers
        self._rows: dict[str, Tensor] = {}
        for name, buffer in of.named_buffers():
            self._keep(name, torch.stack([buffer] * workers))

    def _keep(self, name: str, rows: Tensor) -> None:
        self._rows[name] = rows
        self._buffers[name] = rows[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GhostBatchNorm2d:
        """What `to`, `double` and the like do: here for the rows of all workers."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, rows in self._rows.items():
            self._keep(name, fn(rows))
        return self

    def of_worker(self, name: str, worker: int) -> Tensor:
        """A worker's running_mean, running_var or num_batches_tracked: a view, not a copy."""
        return self._rows[name][worker]

    def forward(self, x: Tensor) -> Tensor:
        """Normalised by the batch of each worker when training, else by the first's statistics."""
        if not self.training:
            return super().forward(x)
        assert self.momentum is not None
        n, c, height, width = len(x) // self.workers, *x.shape[1:]
        self._rows["num_batches_tracked"] += 1
        y = F.batch_norm(
            x.reshape(n, self.workers * c, height, width),
            self._rows["running_mean"].view(-1),
            self._rows["running_var"].view(-1),
            self.weight.repeat(self.workers),
            self.bias.repeat(self.workers),
            training=True,
            momentum=self.momentum,
            eps=self.eps,
        )
        return y.view_as(x)


def ghost(module: nn.Module, workers: int) -> None:
    """Turns every BatchNorm2d inside `module` into ghost normalisation of `workers` workers."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, GhostBatchNorm2d(child, workers))
        else:
            ghost(child, workers)
