"""Made-up photos that lie on the device: to measure training without its input."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.data import DatasetInfo, Source, describe
from trainer.data.decoding import Indices

__all__ = ["Synthetic", "load"]

_DIFFERENT = 64  # images; more would only cost memory


def load(source: Source) -> Synthetic:
    """The images, on the GPU of this process if it has one."""
    return Synthetic(describe(source), "cuda" if torch.cuda.is_available() else "cpu")


class Synthetic:
    """Noise; image i is the (i mod 64)-th, and its label is i mod classes."""

    def __init__(self, info: DatasetInfo, device: torch.device | str = "cpu") -> None:
        self._info, self._device = info, device
        shape = (_DIFFERENT, info.side, info.side, info.channels)
        noise = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator())
        self._images = noise.permute(0, 3, 1, 2).to(device)

    @property
    def info(self) -> DatasetInfo:
        """Sizes and classes."""
        return self._info

    def train_batch(self, indices: Indices, *, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Images that are not augmented: there is nothing to learn."""
        return self.test_batch(indices)

    def test_batch(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """Images and labels, both on the device."""
        rows = torch.from_numpy(indices).to(self._device)
        return self._images[rows % _DIFFERENT], rows % self._info.num_classes
