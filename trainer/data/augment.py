"""Light augmentation: a small turn, scale and shift, a pure function of (seed, epoch, index)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["affine_maps"]

_TURN = np.deg2rad(5.0)
_SCALE = 0.05
_SHIFT = 1 / 16  # of half the image's side: 1 of 32 pixels


def affine_maps(
    indices: npt.NDArray[np.int64], *, seed: int, epoch: int
) -> npt.NDArray[np.float32]:
    """Maps from output to input coordinates, float32 (n, 2, 3), both axes running from -1 to 1.

    Row j depends on (seed, epoch, indices[j]) alone: not on its neighbours in the batch, on the
    worker, or on what was drawn before. So any resumed or repartitioned run sees the same images.
    """
    draws = np.stack([_uniform(seed, epoch, int(index)) for index in indices])  # in [-1, 1)
    turn, scale = _TURN * draws[:, 0], 1 + _SCALE * draws[:, 1]
    shift = _SHIFT * draws[:, 2:4]
    cos, sin = scale * np.cos(turn), scale * np.sin(turn)
    rows = [np.stack([cos, -sin, shift[:, 0]], 1), np.stack([sin, cos, shift[:, 1]], 1)]
    return np.stack(rows, 1).astype(np.float32)


def _uniform(seed: int, epoch: int, index: int) -> npt.NDArray[np.float64]:
    # Philox is a counter-based generator: the key and the counter's high words name the image.
    bits = np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, index])
    return 2 * np.random.Generator(bits).random(4) - 1
