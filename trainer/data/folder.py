"""A folder of photos in ImageNet's layout: train/CLASS/*.JPEG and val/CLASS/*.JPEG."""

from __future__ import annotations

import dataclasses
import functools
import os
from dataclasses import dataclass
from typing import Literal

from trainer.data import DATASETS, DatasetInfo, Source, photos
from trainer.data.decoding import DecodingDataset, Failure, Indices, Pixels, Split
from trainer.data.folder_index import FOLDERS, FolderIndex, load_index

__all__ = ["Folder", "describe", "load"]


def describe(source: Source) -> DatasetInfo:
    """Sizes and classes by the folder's index. DataError if it is no image folder."""
    photos.need_pillow()
    return _info(source, load_index(source.folder))


def _info(source: Source, index: FolderIndex) -> DatasetInfo:
    usual = DATASETS["folder"]
    return dataclasses.replace(
        usual,
        train_images=len(index.labels["train"]),
        test_images=len(index.labels["test"]),
        num_classes=len(index.classes),
        side=source.side or usual.side,
        summary=f"photos of {len(index.classes)} classes in {source.folder}",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decode:
    """Files to read, decode and crop; small, for it goes through a pipe."""

    folder: str
    names: tuple[bytes, ...]
    augment: tuple[Indices, int, int] | None  # indices, seed, epoch

    def fill(self, out: Pixels) -> list[Failure]:
        """Makes the images."""
        paths = [os.path.join(self.folder, os.fsdecode(name)) for name in self.names]
        files = [(path, functools.partial(photos.decode, path)) for path in paths]
        return photos.make(files, photos.crops(self.augment, len(files), out.shape[1]), out)


def load(source: Source) -> Folder:
    """The folder as a data set. DataError if it is no image folder."""
    return Folder(source)


class Folder(DecodingDataset):
    """Photos decoded when they are wanted, by processes of their own."""

    pool: Literal["processes", "threads"] = "processes"

    def __init__(self, source: Source) -> None:
        photos.need_pillow()
        self._root = source.folder
        self._index = load_index(source.folder)
        self._info = _info(source, self._index)

    @property
    def info(self) -> DatasetInfo:
        """Sizes and classes."""
        return self._info

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, by label."""
        return self._index.classes

    def plan(self, split: Split, indices: Indices, *, seed: int = 0, epoch: int = 0) -> _Decode:
        """The files to decode."""
        return _Decode(
            folder=os.path.join(self._root, FOLDERS[split]),
            names=tuple(self._index.names[split][indices].tolist()),
            augment=(indices, seed, epoch) if split == "train" else None,
        )

    def labels(self, split: Split, indices: Indices) -> Indices:
        """The classes of these images."""
        return self._index.labels[split][indices]
