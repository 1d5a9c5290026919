"""Small image folders for tests: real JPEG files of smooth colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def photo(width: int, height: int, number: int) -> Image.Image:
    """A photo-like picture: two waves in each channel, other ones for each number."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    waves = rng.uniform(2, 12, (3, 2, 1, 1))
    pixels = 127 + 60 * (np.sin(waves[:, 0] * x + number) + np.cos(waves[:, 1] * y))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def write_tree(root: Path, *, classes=("ant", "bee", "cat"), train: int = 4, test: int = 2) -> Path:
    """An ImageNet-like folder: photos of three sizes, `train` and `test` per class."""
    number = 0
    for folder, count in (("train", train), ("val", test)):
        for name in classes:
            (root / folder / name).mkdir(parents=True)
            for i in range(count):
                size = ((50, 40), (40, 60), (48, 48))[number % 3]
                photo(*size, number).save(root / folder / name / f"{i}.JPEG", quality=90)
                number += 1
    return root
