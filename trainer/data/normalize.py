"""From the uint8 images that travel to what the network computes with: the one place."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.data import DatasetInfo

__all__ = ["Normalize"]


class Normalize:
    """(pixel / 255 - mean) / std per channel, computed on the device; a callable.

    One grey channel is repeated until there are `channels`.
    """

    def __init__(
        self,
        info: DatasetInfo,
        *,
        channels: int = 3,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        mean, std = (
            torch.tensor(values, device=device).view(-1, 1, 1) for values in (info.mean, info.std)
        )
        self._scale, self._shift = 1 / (255 * std), -mean / std
        self._channels, self._dtype, self._format = channels, dtype, memory_format

    def __call__(self, images: Tensor) -> Tensor:
        """Images uint8 (n, c, h, w), anywhere; the result has the dtype, (n, channels, h, w)."""
        images = images.to(self._scale.device, non_blocking=True).to(torch.float32)
        # Two roundings, never addcmul: a compiler may fuse it in the middle of a vector and not at
        # its end, and then a pixel's bits depend on its place in the batch.
        images = images.mul_(self._scale).add_(self._shift).to(self._dtype)
        if images.shape[1] != self._channels:
            images = images.expand(-1, self._channels, -1, -1)
        return images.contiguous(memory_format=self._format)
