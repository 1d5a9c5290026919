"""Random numbers of augmentation: a pure function of (seed, epoch, index), whole batches at once.

So a resumed or repartitioned run sees the same images, whatever worker or process makes them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["affine_maps", "uniforms"]

_TURN = np.deg2rad(5.0)
_SCALE = 0.05
_SHIFT = 1 / 16  # of half the image's side: 1 of 32 pixels

_GOLDEN, _WORD = 0x9E3779B97F4A7C15, (1 << 64) - 1


def uniforms(
    indices: npt.NDArray[np.int64], count: int, *, seed: int, epoch: int
) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1), float64 (n, count); row j depends on (seed, epoch, indices[j]) alone.

    SplitMix64 (Steele, Lea and Flood, 2014), one word of (seed, epoch, index, column) after the
    other; a NumPy generator per image would take 50 us each.
    """
    state = np.zeros((1, 1), np.uint64)
    for word in (seed, epoch, indices[:, None], np.arange(count)[None, :]):
        words = np.asarray(word & _WORD if isinstance(word, int) else word).astype(np.uint64)
        state = _mix(state + words + np.uint64(_GOLDEN))
    uniform: npt.NDArray[np.float64] = (state >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return uniform


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def affine_maps(
    indices: npt.NDArray[np.int64], *, seed: int, epoch: int
) -> npt.NDArray[np.float32]:
    """A small turn, scale and shift: maps from output to input coordinates, float32 (n, 2, 3).

    Both axes run from -1 to 1.
    """
    draws = 2 * uniforms(indices, 4, seed=seed, epoch=epoch) - 1
    turn, scale = _TURN * draws[:, 0], 1 + _SCALE * draws[:, 1]
    shift = _SHIFT * draws[:, 2:4]
    cos, sin = scale * np.cos(turn), scale * np.sin(turn)
    rows = [np.stack([cos, -sin, shift[:, 0]], 1), np.stack([sin, cos, shift[:, 1]], 1)]
    return np.stack(rows, 1).astype(np.float32)
