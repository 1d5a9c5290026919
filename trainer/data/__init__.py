"""Data sets: what is known of each without loading it, and how to open one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

__all__ = ["DATASETS", "Dataset", "DatasetInfo", "open_dataset"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInfo:
    """Facts for checking options before any data or torch is loaded; sizes in images."""

    train_images: int
    test_images: int
    num_classes: int
    summary: str


DATASETS: dict[str, DatasetInfo] = {
    "digits": DatasetInfo(
        train_images=1536,
        test_images=261,
        num_classes=10,
        summary="1,797 scanned digits, shipped with the package, at 32x32",
    )
}


class Dataset(Protocol):
    """Images by index. Both calls give float32 (n, 3, height, width) and int64 labels (n,)."""

    @property
    def info(self) -> DatasetInfo:
        """Sizes and classes."""
        ...

    def train_batch(
        self, indices: npt.NDArray[np.int64], *, seed: int, epoch: int
    ) -> tuple[Tensor, Tensor]:
        """Augmented training images; image i is a pure function of (seed, epoch, i)."""
        ...

    def test_batch(self, indices: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Test images, not augmented."""
        ...


def open_dataset(name: str) -> Dataset:
    """The data set called `name` (a key of DATASETS), loaded. KeyError for another name."""
    from trainer.data.digits import Digits

    return {"digits": Digits}[name]()
