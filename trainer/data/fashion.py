"""Fashion-MNIST (Xiao et al., 2017): 70,000 photos of clothes, 28x28, shown at 32, 28 or 14."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.data import DatasetInfo, Source, fashion_files
from trainer.data.augment import uniforms

__all__ = ["Fashion", "load"]

_SIDE = 28
_SHIFT = 2  # pixels of 28, each way


def load(source: Source) -> Fashion:
    """Fashion-MNIST from its files. DataError as `fashion_files.describe`."""
    return Fashion(fashion_files.describe(source), *fashion_files.read(source))


class Fashion:
    """Images uint8 (n, 28, 28), training ones first, and labels int64 (n,); all in memory.

    A training image is shifted by up to 2 pixels and perhaps mirrored. At 32 there is a black
    border; at 14 each pixel is the mean of 2x2, after the shift.
    """

    def __init__(
        self, info: DatasetInfo, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]
    ) -> None:
        self._info, self._labels = info, labels
        self._window = max(info.side, _SIDE)
        border = _SHIFT + (self._window - _SIDE) // 2
        self._canvas = np.pad(images, ((0, 0), (border, border), (border, border)))

    @property
    def info(self) -> DatasetInfo:
        """Sizes and classes."""
        return self._info

    def train_batch(
        self, indices: npt.NDArray[np.int64], *, seed: int, epoch: int
    ) -> tuple[Tensor, Tensor]:
        """Augmented images; `indices` int64 (n,), each in [0, 60000)."""
        draws = uniforms(indices, 3, seed=seed, epoch=epoch)
        corner = (draws[:, :2] * (2 * _SHIFT + 1)).astype(np.int64)
        return self._cut(indices, corner, mirror=draws[:, 2] < 0.5)

    def test_batch(self, indices: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Images as they are; `indices` int64 (n,), each in [0, 10000)."""
        middle = np.full((len(indices), 2), _SHIFT)
        return self._cut(
            indices + self._info.train_images, middle, mirror=np.zeros(len(indices), bool)
        )

    def _cut(
        self,
        rows: npt.NDArray[np.int64],
        corner: npt.NDArray[np.int64],
        mirror: npt.NDArray[np.bool_],
    ) -> tuple[Tensor, Tensor]:
        inside = np.arange(self._window)
        y = corner[:, :1] + inside
        x = corner[:, 1:] + np.where(mirror[:, None], inside[::-1], inside)
        images = self._canvas[rows[:, None, None], y[:, :, None], x[:, None, :]]
        if self._info.side < self._window:
            images = _halve(images)
        return torch.from_numpy(images[:, None]), torch.from_numpy(self._labels[rows])


def _halve(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The mean of each 2x2, rounded; from (n, 2h, 2w) to (n, h, w)."""
    rows = images[:, 0::2].astype(np.uint16) + images[:, 1::2]
    mean: npt.NDArray[np.uint8] = ((rows[:, :, 0::2] + rows[:, :, 1::2] + 2) >> 2).astype(np.uint8)
    return mean
