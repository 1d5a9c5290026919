"""A packed file as a data set: augmented as the data set that it was made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from trainer.data import Dataset, DatasetInfo, Source, photos
from trainer.data.decoding import DecodingDataset, Failure, Indices, Pixels, Split
from trainer.data.packed_file import PackedImages, describe, open_arrays

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["PackedPhotos", "load"]


def load(source: Source) -> Dataset:
    """The file as a data set. DataError as `packed_file.read_header`."""
    info = describe(source)
    header, images, labels = open_arrays(source.folder)
    if header.kind == "folder":
        photos.need_pillow()
        return PackedPhotos(info, images, labels)
    if header.kind == "fashion":
        from trainer.data.fashion import Fashion

        return Fashion(info, images.all()[..., 0], labels)
    from trainer.data.digits import Digits

    return Digits(info, images.all()[..., 0], labels)


@dataclass(frozen=True, slots=True)
class _Crop:
    """Rows of the mapped images to crop."""

    images: PackedImages
    rows: Indices
    augment: tuple[Indices, int, int] | None  # indices, seed, epoch

    def fill(self, out: Pixels) -> list[Failure]:
        """Makes the images."""
        pictures = [(f"image {row}", self._getter(row)) for row in self.rows.tolist()]
        return photos.make(pictures, photos.crops(self.augment, len(self.rows), out.shape[1]), out)

    def _getter(self, row: int) -> Callable[[], Image]:
        from PIL import Image

        return lambda: Image.fromarray(self.images[row])


class PackedPhotos(DecodingDataset):
    """Photos of one size, uint8 (n, height, width, 3), training ones first; cropped by threads."""

    pool: Literal["processes", "threads"] = "threads"

    def __init__(
        self, info: DatasetInfo, images: PackedImages, labels: npt.NDArray[np.int64]
    ) -> None:
        self._info, self._images, self._labels = info, images, labels

    @property
    def info(self) -> DatasetInfo:
        """Sizes and classes."""
        return self._info

    def plan(self, split: Split, indices: Indices, *, seed: int = 0, epoch: int = 0) -> _Crop:
        """The rows to crop."""
        augment = (indices, seed, epoch) if split == "train" else None
        return _Crop(self._images, self._rows(split, indices), augment)

    def labels(self, split: Split, indices: Indices) -> Indices:
        """The classes of these images."""
        return self._labels[self._rows(split, indices)]

    def _rows(self, split: Split, indices: Indices) -> Indices:
        return indices if split == "train" else indices + self._info.train_images
