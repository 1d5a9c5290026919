"""Data sets whose images take work: what a process or thread does for one piece of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from trainer.data import DataError, DatasetInfo

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DecodingDataset", "Failure", "Indices", "Pixels", "Split", "Work"]

Indices = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]
Split = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class Failure:
    """Image `row` of a piece cannot be had; `reason` names the file and says why."""

    row: int
    reason: str


class Work(Protocol):
    """A piece of a batch; a value that may travel to another process, which needs no torch."""

    def fill(self, out: Pixels) -> list[Failure]:
        """Makes the images, uint8 (n, side, side, 3); what fails is reported and left alone."""
        ...


class DecodingDataset(ABC):
    """A data set that can say what work an image is, to whoever does it (see trainer.data.feed).

    `pool` says who should: processes, or threads where the work is done outside the interpreter.
    """

    pool: Literal["processes", "threads"]

    @property
    @abstractmethod
    def info(self) -> DatasetInfo:
        """Sizes and classes."""

    @abstractmethod
    def plan(self, split: Split, indices: Indices, *, seed: int = 0, epoch: int = 0) -> Work:
        """The work of these images; those of "train" are augmented by (seed, epoch, index)."""

    @abstractmethod
    def labels(self, split: Split, indices: Indices) -> Indices:
        """The classes of these images."""

    def train_batch(self, indices: Indices, *, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Augmented images, made here and now. DataError for one that cannot be read."""
        return self._make("train", indices, seed, epoch)

    def test_batch(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """Test images, made here and now. DataError for one that cannot be read."""
        return self._make("test", indices, 0, 0)

    def _make(self, split: Split, indices: Indices, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        import torch

        pixels = np.empty((len(indices), self.info.side, self.info.side, 3), np.uint8)
        for failure in self.plan(split, indices, seed=seed, epoch=epoch).fill(pixels):
            raise DataError(failure.reason)
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        return images, torch.from_numpy(self.labels(split, indices))
