"""Small Fashion-MNIST files for tests, in the idx format."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

TRAIN, TEST = 50, 9


def write_idx(path: Path, values: np.ndarray, compress: bool = True) -> None:
    head = bytes((0, 0, 8, values.ndim)) + np.array(values.shape, ">u4").tobytes()
    data = head + values.tobytes()
    path.write_bytes(gzip.compress(data, 1) if compress else data)


def write(folder: Path, *, suffix: str = ".gz") -> Path:
    """A small Fashion-MNIST: image i has a ramp with its own slope, label i mod 10."""
    folder.mkdir(exist_ok=True)
    ramp = np.add.outer(np.arange(28), 3 * np.arange(28)) + 1
    for part, count in (("train", TRAIN), ("t10k", TEST)):
        images = (ramp * (1 + np.arange(count)[:, None, None] % 2)).astype(np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", images, bool(suffix))
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", labels, bool(suffix))
    return folder
