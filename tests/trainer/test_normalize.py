"""Normalisation: one place, on the device, whatever the batch."""

from __future__ import annotations

import pytest
import torch

from trainer.data import DatasetInfo
from trainer.data.normalize import Normalize

INFO = DatasetInfo(
    train_images=1, test_images=1, num_classes=2, channels=3, side=5,
    mean=(0.5, 0.25, 0.1), std=(0.2, 0.3, 0.4), summary="",
)  # fmt: skip
GREY = DatasetInfo(
    train_images=1, test_images=1, num_classes=2, channels=1, side=5,
    mean=(0.5,), std=(0.2,), summary="",
)  # fmt: skip


def pixels(channels: int, count: int = 7) -> torch.Tensor:
    return torch.randint(256, (count, channels, 5, 5), dtype=torch.uint8)


def test_each_channel_has_its_mean_and_deviation() -> None:
    images = pixels(3)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (INFO.mean, INFO.std))
    expected = (images / 255 - mean) / std
    torch.testing.assert_close(Normalize(INFO)(images), expected)


def test_grey_images_get_three_equal_channels() -> None:
    out = Normalize(GREY)(pixels(1))
    assert out.shape == (7, 3, 5, 5)
    assert torch.equal(out[:, 0], out[:, 1])
    assert torch.equal(out[:, 0], out[:, 2])
    assert Normalize(GREY, channels=1)(pixels(1)).shape == (7, 1, 5, 5)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_bits_do_not_depend_on_the_place_in_the_batch(count: int) -> None:
    images, normalize = pixels(3, 8), Normalize(INFO)
    assert torch.equal(normalize(images)[:count], normalize(images[:count]))
    assert torch.equal(normalize(images)[-count:], normalize(images[-count:]))


def test_dtype_and_memory_format_are_the_asked_ones() -> None:
    out = Normalize(GREY, dtype=torch.bfloat16, memory_format=torch.channels_last)(pixels(1))
    assert out.dtype == torch.bfloat16
    assert out.is_contiguous(memory_format=torch.channels_last)
