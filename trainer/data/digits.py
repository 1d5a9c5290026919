"""Scanned digits from the UCI repository (see NOTICE), 8x8, shown to the network at 32x32."""

from __future__ import annotations

from importlib import resources

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.data import DATASETS, DatasetInfo, Source
from trainer.data.augment import affine_maps

__all__ = ["Digits", "load", "read"]

_SIDE = 32
_FULL_INK = 16.0


def read() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The images, uint8 (1797, 8, 8) with ink from 0 to 255, training ones first, and labels."""
    file = resources.files("trainer.data") / "digits.npz"
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    count = DATASETS["digits"].test_images
    test = np.arange(count) * len(images) // count
    rows = np.concatenate([np.delete(np.arange(len(images)), test), test])
    ink = np.rint(images[rows] * (255 / _FULL_INK)).astype(np.uint8)
    return ink, labels[rows].astype(np.int64)


def load(source: Source) -> Digits:
    """The shipped digits."""
    return Digits(DATASETS["digits"], *read())


class Digits:
    """The 1,797 digits: 261 evenly spaced ones of the published file test, the other 1,536 train.

    The file has one writer after another, so both parts hold digits from every hand.

    Bilinear sampling takes an 8x8 image to 32x32 (four output pixels a side for each input pixel,
    black outside); the training augmentation (small turn, scale and shift) is part of the same
    sampling, so pixels are interpolated once.
    """

    def __init__(
        self, info: DatasetInfo, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]
    ) -> None:
        self._info = info
        self._images = torch.from_numpy(images.astype(np.float32)).unsqueeze(1)  # (1797, 1, 8, 8)
        self._labels = torch.from_numpy(labels)

    @property
    def info(self) -> DatasetInfo:
        """Sizes and classes."""
        return self._info

    def train_batch(
        self, indices: npt.NDArray[np.int64], *, seed: int, epoch: int
    ) -> tuple[Tensor, Tensor]:
        """Augmented images; `indices` int64 (n,), each in [0, 1536)."""
        maps = torch.from_numpy(affine_maps(indices, seed=seed, epoch=epoch))
        return self._sample(torch.from_numpy(indices), maps)

    def test_batch(self, indices: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Images as they are; `indices` int64 (n,), each in [0, 261)."""
        identity = torch.eye(2, 3).expand(len(indices), 2, 3)
        return self._sample(torch.from_numpy(indices) + self.info.train_images, identity)

    def _sample(self, rows: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
        grid = F.affine_grid(maps, [len(rows), 1, _SIDE, _SIDE], align_corners=False)
        images = F.grid_sample(self._images[rows], grid, mode="bilinear", align_corners=False)
        return images.round_().to(torch.uint8), self._labels[rows]
