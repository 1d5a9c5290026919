"""Fashion-MNIST: files in the idx format, shifted and mirrored by a pure function."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from fashion_files import TEST, TRAIN, write, write_idx

from trainer.data import DATASETS, DataError, Source, describe, open_dataset

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "fashion")


def source(folder: Path, side: int = 0) -> Source:
    return Source(name="fashion", folder=str(folder), side=side)


@pytest.mark.parametrize("side", [32, 28, 14])
def test_batches_have_the_promised_shapes_and_types(folder: Path, side: int) -> None:
    fashion = open_dataset(source(folder, side))
    for images, labels in (
        fashion.train_batch(np.arange(5), seed=0, epoch=0),
        fashion.test_batch(np.arange(5)),
    ):
        assert (images.shape, images.dtype) == ((5, 1, side, side), torch.uint8)
        assert (labels.tolist(), labels.dtype) == (list(range(5)), torch.int64)


def test_compressed_or_not_it_is_the_same(folder: Path, tmp_path: Path) -> None:
    plain = open_dataset(source(write(tmp_path / "plain", suffix="")))
    images, _ = open_dataset(source(folder)).test_batch(np.arange(TEST))
    assert torch.equal(images, plain.test_batch(np.arange(TEST))[0])


def test_at_32_there_is_a_border_and_at_14_the_mean_of_four(folder: Path) -> None:
    whole, wide, small = (
        open_dataset(source(folder, side)).test_batch(np.arange(TEST))[0][:, 0].int()
        for side in (28, 32, 14)
    )
    assert torch.equal(wide[:, 2:-2, 2:-2], whole)
    assert wide.sum() == whole.sum()
    quarters = whole.view(TEST, 14, 2, 14, 2).sum((2, 4))
    assert torch.equal(small, (quarters + 2) // 4)


def test_a_training_image_is_one_of_the_shifts_and_mirror_images(folder: Path) -> None:
    fashion = open_dataset(source(folder, 28))
    plain = fashion.test_batch(np.arange(2))[0][:, 0].numpy()  # both ramps
    images = np.concatenate(
        [fashion.train_batch(np.arange(TRAIN), seed=0, epoch=e)[0][:, 0] for e in range(10)]
    )
    variants = {}
    for ramp in plain:
        canvas = np.pad(ramp, 2)
        for y in range(5):
            for x in range(5):
                cut = canvas[y : y + 28, x : x + 28]
                for mirrored in (False, True):
                    variants[(cut[:, ::-1] if mirrored else cut).tobytes()] = (y, x, mirrored)
    seen = {variants[image.tobytes()] for image in images}  # KeyError for any other image
    assert len(seen) == 50


def test_an_augmented_image_depends_on_seed_epoch_and_index_alone(folder: Path) -> None:
    fashion = open_dataset(source(folder))
    many, _ = fashion.train_batch(np.arange(TRAIN), seed=3, epoch=2)
    for i in (0, 17, 49):
        alone, _ = fashion.train_batch(np.array([i]), seed=3, epoch=2)
        assert torch.equal(alone[0], many[i])
    assert not torch.equal(fashion.train_batch(np.arange(TRAIN), seed=3, epoch=1)[0], many)
    assert not torch.equal(fashion.train_batch(np.arange(TRAIN), seed=4, epoch=2)[0], many)


def test_description_needs_no_images(folder: Path) -> None:
    info = describe(source(folder, 14))
    assert (info.train_images, info.test_images, info.side) == (TRAIN, TEST, 14)


def cut(file: Path) -> None:
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[:-1]))


def swap_labels(file: Path) -> None:
    write_idx(file, np.full(TRAIN, 10, np.uint8))


REFUSALS = [
    ("train-images-idx3", Path.unlink, r"there is no .*train-images.*: apt install dataset-fash"),
    ("t10k-labels-idx1", lambda f: f.write_bytes(b"x"), r"t10k-labels.* is damaged"),
    ("t10k-images-idx3", lambda f: f.write_bytes(f.read_bytes()[:40]), "is damaged"),
    ("train-images-idx3", cut, r"is damaged \(39199 values where 39200 belong\)"),
    ("train-labels-idx1", swap_labels, "holds label 10, but there are 10 classes"),
    ("train-labels-idx1", lambda f: write_idx(f, np.zeros(3, np.uint8)), "50 images .* 3 labels"),
    ("t10k-images-idx3", lambda f: write_idx(f, np.zeros((9, 8, 8), np.uint8)), "of 8x8"),
    ("t10k-images-idx3", lambda f: f.write_bytes(gzip.compress(b"0" * 99)), "is no idx file"),
]


@pytest.mark.parametrize(("name", "harm", "says"), REFUSALS)
def test_a_wrong_file_is_named_in_one_line(folder: Path, name: str, harm, says: str) -> None:
    harm(folder / f"{name}-ubyte.gz")
    with pytest.raises(DataError, match=says) as caught:
        open_dataset(source(folder))
    assert "\n" not in str(caught.value)
    assert "--data-dir" in str(caught.value)


def test_a_side_that_it_does_not_have_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="--side 64: --data fashion is shown at 32, 28 or 14"):
        describe(source(folder, 64))


@pytest.mark.skipif(not DEBIAN.exists(), reason="needs Debian's dataset-fashion-mnist")
@pytest.mark.parametrize("side", [32, 14])
def test_the_published_set_has_the_stated_size_mean_and_deviation(side: int) -> None:
    fashion = open_dataset(Source(name="fashion", side=side))
    info, usual = fashion.info, DATASETS["fashion"]
    assert (info.train_images, info.test_images) == (usual.train_images, usual.test_images)
    some = np.arange(0, info.train_images, 12)
    plain, _ = fashion._cut(some, np.full((len(some), 2), 2), np.zeros(len(some), bool))
    pixels = plain.numpy() / np.float32(255)
    assert pixels.mean(dtype=np.float64) == pytest.approx(info.mean[0], abs=2e-3)
    assert pixels.std(dtype=np.float64) == pytest.approx(info.std[0], abs=2e-3)
