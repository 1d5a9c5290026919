"""Synthetic images, and data sets whose packages are missing."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from trainer.data import DataError, Source, describe, open_dataset


def test_synthetic_images_are_those_of_imagenet_in_size_and_number() -> None:
    info = describe(Source(name="synthetic"))
    assert (info.train_images, info.num_classes, info.channels, info.side) == (
        1_281_167,
        1000,
        3,
        224,
    )


def test_synthetic_batches_are_a_function_of_the_index() -> None:
    dataset = open_dataset(Source(name="synthetic", side=8))
    images, labels = dataset.train_batch(np.array([1, 65, 1000]), seed=0, epoch=0)
    assert (images.shape, images.dtype) == ((3, 3, 8, 8), torch.uint8)
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])
    assert labels.tolist() == [1, 65, 0]
    again = open_dataset(Source(name="synthetic", side=8)).test_batch(np.array([1]))[0]
    assert torch.equal(images[0], again[0])


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("dali", "nvidia.dali", "pip install nvidia-dali"),
        ("folder", "PIL", "hier-allreduce[photos]"),
    ],
)
def test_a_missing_package_is_named(monkeypatch, name: str, module: str, package: str) -> None:
    for loaded in [m for m in sys.modules if m.split(".")[0] == module.split(".")[0]]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError) as caught:
        describe(Source(name=name, folder="/"))
    assert package in str(caught.value)
