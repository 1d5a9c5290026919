"""Which images a worker sees: one permutation per epoch, cut among all workers (Remark 4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["EpochSampler", "evaluation_batches"]

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochSampler:
    """The training indices of one worker; a value, so any iteration of any epoch can be asked for.

    Iteration t of an epoch consumes permutation[t kn : (t + 1) kn]; worker `rank` takes the rank-th
    n of them. The total minibatch therefore depends on kn alone, not on how many workers share it.
    The last size mod kn images of a permutation are left out (others in each epoch), so that each
    iteration has exactly kn.
    """

    size: int
    batch: int
    rank: int
    world_size: int
    seed: int

    @property
    def iterations(self) -> int:
        """Iterations in an epoch."""
        return self.size // (self.batch * self.world_size)

    def permutation(self, epoch: int) -> Indices:
        """The order of all `size` images in `epoch`, the same on every worker; int64 (size,)."""
        return np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(self.size)

    def epoch(self, epoch: int, offset: int = 0) -> Iterator[Indices]:
        """This worker's indices for each iteration of `epoch`; int64 (batch,) each.

        The first `offset` images of the permutation are used up, perhaps by another number of
        workers: the others are dealt out.
        """
        order = self.permutation(epoch)[offset:]
        for iteration in range(len(order) // (self.batch * self.world_size)):
            first = (iteration * self.world_size + self.rank) * self.batch
            yield order[first : first + self.batch]


def evaluation_batches(size: int, batch: int, rank: int, world_size: int) -> Iterator[Indices]:
    """This worker's share of `size` test images, at most `batch` at a time.

    Over all workers each image comes exactly once, whatever the sizes: nothing is padded, shares
    differ by at most one image, and a worker's share may be empty.
    """
    share = np.arange(rank, size, world_size, dtype=np.int64)
    for first in range(0, len(share), batch):
        yield share[first : first + batch]
