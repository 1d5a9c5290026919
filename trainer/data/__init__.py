"""Data sets: what is known of each without loading it, and how to open one."""

from __future__ import annotations

import dataclasses
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from trainer.errors import TrainerError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

__all__ = [
    "DATASETS",
    "IMAGENET",
    "DataError",
    "Dataset",
    "DatasetInfo",
    "Source",
    "describe",
    "open_dataset",
]


class DataError(TrainerError, ValueError):
    """Data that cannot be trained on; one line that names the option or file, and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInfo:
    """What one must know of a data set before any image or torch is loaded.

    Sizes are in images; `side` in pixels, as the network sees them; `mean` and `std` are of the
    training images, one value per channel, with pixels running from 0 to 1. `note` is what whoever
    starts a run should know of the data.
    """

    train_images: int
    test_images: int
    num_classes: int
    channels: int
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    summary: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Which data set, where it lies (`folder` "": its usual place), `side` in pixels (0: usual)."""

    name: str = "digits"
    folder: str = ""
    side: int = 0


IMAGENET = DatasetInfo(
    train_images=1_281_167,
    test_images=50_000,
    num_classes=1000,
    channels=3,
    side=224,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    summary="ImageNet-1k",
)

# What is known without a look at the disk: exact for the data sets that are always the same,
# ImageNet's figures for those of the user, of which `describe` knows more.
DATASETS: dict[str, DatasetInfo] = {
    "digits": DatasetInfo(
        train_images=1536,
        test_images=261,
        num_classes=10,
        channels=1,
        side=32,
        mean=(0.3056,),
        std=(0.3761,),
        summary="1,797 scanned digits, shipped with the package, at 32x32",
    ),
    "fashion": DatasetInfo(
        train_images=60_000,
        test_images=10_000,
        num_classes=10,
        channels=1,
        side=32,
        mean=(0.2190,),
        std=(0.3318,),
        summary="Fashion-MNIST: 70,000 photos of clothes, at 32x32, 28x28 or 14x14",
    ),
    "folder": IMAGENET,
    "packed": IMAGENET,
    "synthetic": IMAGENET,
    "dali": IMAGENET,
}


_DESCRIBED_IN = {  # modules without torch
    "fashion": "fashion_files",
    "folder": "folder",
    "packed": "packed_file",
    "dali": "dali",
}


class Dataset(Protocol):
    """Images by index. Both calls give uint8 (n, channels, side, side) and int64 labels (n,)."""

    @property
    def info(self) -> DatasetInfo:
        """Sizes, classes, and what `trainer.data.normalize` needs."""
        ...

    def train_batch(
        self, indices: npt.NDArray[np.int64], *, seed: int, epoch: int
    ) -> tuple[Tensor, Tensor]:
        """Augmented training images; image i is a pure function of (seed, epoch, i)."""
        ...

    def test_batch(self, indices: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Test images, not augmented."""
        ...


def describe(source: Source) -> DatasetInfo:
    """Looks at the data and says what it is, without torch and without loading any image.

    DataError if it is not there, is not what it should be, or cannot have this side.
    """
    usual = DATASETS[source.name]
    if source.name == "synthetic":
        return dataclasses.replace(usual, side=source.side or usual.side)
    if source.name == "digits":
        if source.side not in (0, usual.side):
            raise DataError(f"--side {source.side}: --data digits is shown at {usual.side} only")
        return usual
    module = importlib.import_module(f"trainer.data.{_DESCRIBED_IN[source.name]}")
    info: DatasetInfo = module.describe(source)
    return info


def open_dataset(source: Source) -> Dataset:
    """The data set that `source` names, loaded. DataError as `describe`."""
    dataset: Dataset = importlib.import_module(f"trainer.data.{source.name}").load(source)
    return dataset
