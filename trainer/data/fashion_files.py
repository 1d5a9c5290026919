"""The files of Fashion-MNIST: where they lie, and the idx format they are in."""

from __future__ import annotations

import dataclasses
import gzip
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.data import DATASETS, DataError, DatasetInfo, Source

__all__ = ["describe", "read"]

_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_REMEDY = (
    "apt install dataset-fashion-mnist, or name the folder of its four idx files by --data-dir"
)
_PARTS = {"train": "train", "test": "t10k"}
_MOMENTS = {28: (0.2860, 0.3530), 32: (0.2190, 0.3318), 14: (0.2863, 0.3303)}  # mean, deviation


def describe(source: Source) -> DatasetInfo:
    """Sizes and side, after a look at the heads of the four files. DataError if one is missing."""
    usual = DATASETS["fashion"]
    side = source.side or usual.side
    if side not in _MOMENTS:
        raise DataError(f"--side {side}: --data fashion is shown at 32, 28 or 14")
    counts = {}
    for part in _PARTS:
        (images, height, width), (labels,) = (
            _Idx(_path(source, part, kind)).shape for kind in ("images", "labels")
        )
        if (height, width) != (28, 28) or images != labels or not images:
            path = _path(source, part, "images")
            raise DataError(
                f"--data fashion: {path} holds {images} images of {height}x{width} for {labels} "
                f"labels, not as many of 28x28: {_REMEDY}"
            )
        counts[part] = images
    mean, std = _MOMENTS[side]
    return dataclasses.replace(
        usual, train_images=counts["train"], test_images=counts["test"], side=side,
        mean=(mean,), std=(std,),
    )  # fmt: skip


def read(source: Source) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """All images, uint8 (n, 28, 28), training ones first, and their labels (n,)."""
    images, labels = (
        np.concatenate([_Idx(_path(source, part, kind)).read() for part in _PARTS])
        for kind in ("images", "labels")
    )
    classes = DATASETS["fashion"].num_classes
    if labels.max(initial=0) >= classes:
        path = _path(source, "train", "labels")
        raise DataError(
            f"--data fashion: {path} or its like holds label {labels.max()}, but there are "
            f"{classes} classes: {_REMEDY}"
        )
    return images, labels.astype(np.int64)


def _path(source: Source, part: str, kind: str) -> Path:
    folder = Path(source.folder) if source.folder else _DEBIAN
    name = f"{_PARTS[part]}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise DataError(f"--data fashion: there is no {folder / name}.gz: {_REMEDY}")


class _Idx:
    """A file of the idx format (of MNIST): bytes 0, 0, 8 (uint8), dimensions, sizes, values."""

    def __init__(self, path: Path) -> None:
        self._path = path
        dimensions = 3 if "idx3" in path.name else 1
        head = self._bytes(4 + 4 * dimensions)
        if head[:4] != bytes((0, 0, 8, dimensions)):
            raise DataError(f"--data fashion: {path} is no idx file of bytes: {_REMEDY}")
        self.shape = tuple(int(size) for size in np.frombuffer(head, ">u4", offset=4))

    def read(self) -> npt.NDArray[np.uint8]:
        """All values."""
        values = np.frombuffer(self._bytes(-1), np.uint8)[4 + 4 * len(self.shape) :]
        if values.size != np.prod(self.shape):
            raise self._damaged(f"{values.size} values where {np.prod(self.shape)} belong")
        return values.reshape(self.shape)

    def _bytes(self, count: int) -> bytes:
        try:
            with (gzip.open if self._path.suffix == ".gz" else open)(self._path, "rb") as stream:
                found = stream.read(count)
        except (OSError, EOFError, ValueError) as error:
            raise self._damaged(str(error)) from None
        if len(found) < count:
            raise self._damaged(f"{len(found)} bytes")
        return found

    def _damaged(self, how: str) -> DataError:
        return DataError(f"--data fashion: {self._path} is damaged ({how}): {_REMEDY}")
