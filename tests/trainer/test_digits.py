"""The shipped digits: unaltered, split cleanly, augmented by a pure function."""

from __future__ import annotations

import hashlib
from importlib import resources

import numpy as np
import pytest
import torch

from trainer.data import DATASETS, Source, open_dataset
from trainer.data.augment import affine_maps

TRAIN = np.arange(1536)
TEST = np.arange(261)


@pytest.fixture(scope="module")
def digits():
    return open_dataset(Source(name="digits"))


def raw() -> tuple[np.ndarray, np.ndarray]:
    with np.load(resources.files("trainer.data") / "digits.npz") as arrays:
        return arrays["images"], arrays["labels"]


def test_file_holds_the_published_values() -> None:
    images, labels = raw()
    assert (images.shape, images.dtype, labels.dtype) == ((1797, 8, 8), np.uint8, np.uint8)
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    assert digest == "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


def test_notice_names_source_and_licence() -> None:
    notice = (resources.files("trainer.data") / "NOTICE").read_text()
    assert "Optical Recognition of Handwritten Digits" in notice
    assert "CC BY 4.0" in notice
    assert "Changed:" in notice


def test_batches_have_the_promised_shapes_and_types(digits) -> None:
    for images, labels in (
        digits.train_batch(TRAIN[:7], seed=0, epoch=0),
        digits.test_batch(TEST[:7]),
    ):
        assert (images.shape, images.dtype) == ((7, 1, 32, 32), torch.uint8)
        assert (labels.shape, labels.dtype) == ((7,), torch.int64)


def test_train_and_test_are_all_images_each_once(digits) -> None:
    stored = torch.cat([digits.train_batch(TRAIN, seed=0, epoch=0)[1], digits.test_batch(TEST)[1]])
    assert len(stored) == len(raw()[1])
    assert sorted(stored.tolist()) == sorted(raw()[1].tolist())
    pixels = digits._images.reshape(1797, -1).mul(16 / 255).round().to(torch.uint8)
    ours = sorted(map(bytes, pixels.numpy()))
    assert ours == sorted(image.tobytes() for image in raw()[0])


def test_sizes_are_those_that_options_are_checked_against(digits) -> None:
    info = DATASETS["digits"]
    assert info.train_images + info.test_images == len(digits._labels)
    assert info.num_classes == len(set(digits._labels.tolist()))


def test_test_images_are_the_digits_four_times_larger(digits) -> None:
    images, _ = digits.test_batch(TEST)
    ink = images[:, 0] / 255
    small = digits._images[1536:, 0] / 255
    averaged = ink.reshape(261, 8, 4, 8, 4).mean((2, 4))
    # Bilinear sampling blurs a little; a flip, turn or shift by a pixel would correlate far less.
    assert np.corrcoef(averaged.flatten(), small.flatten())[0, 1] > 0.97
    assert ink.min().item() == 0


def test_mean_and_deviation_are_those_of_the_training_digits(digits) -> None:
    pixels = digits._images[:1536] / 255
    assert pixels.mean().item() == pytest.approx(digits.info.mean[0], abs=1e-3)
    assert pixels.std().item() == pytest.approx(digits.info.std[0], abs=1e-3)


def test_an_augmented_image_depends_on_seed_epoch_and_index_alone(digits) -> None:
    many, _ = digits.train_batch(np.array([5, 900, 17, 1535]), seed=3, epoch=2)
    alone, _ = digits.train_batch(np.array([17]), seed=3, epoch=2)
    assert torch.equal(many[2], alone[0])
    for seed, epoch in ((4, 2), (3, 1)):
        other, _ = digits.train_batch(np.array([17]), seed=seed, epoch=epoch)
        assert not torch.equal(other[0], alone[0])


def test_augmentation_leaves_the_digit_recognisable(digits) -> None:
    augmented, _ = digits.train_batch(TRAIN, seed=0, epoch=0)
    plain, _ = digits._sample(torch.from_numpy(TRAIN), torch.eye(2, 3).expand(1536, 2, 3))
    correlation = [
        np.corrcoef(a.flatten(), b.flatten())[0, 1]
        for a, b in zip(augmented[:, 0], plain[:, 0], strict=True)
    ]
    assert min(correlation) > 0.7
    assert max(correlation) < 0.9999


def test_augmentation_draws_fill_their_ranges() -> None:
    maps = affine_maps(np.arange(4000), seed=0, epoch=0)
    scale = np.hypot(maps[:, 0, 0], maps[:, 1, 0])
    turn = np.degrees(np.arctan2(maps[:, 1, 0], maps[:, 0, 0]))
    for values, limit in ((scale - 1, 0.05), (turn, 5.0), (maps[:, :, 2], 1 / 16)):
        assert np.abs(values).max() == pytest.approx(limit, rel=0.01)
        assert np.abs(values).max() <= limit * (1 + 1e-6)
        assert abs(values.mean()) < 0.05 * limit
