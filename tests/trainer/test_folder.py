"""An image folder: its index, its mistakes in one line each, its images."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from photo_trees import photo, write_tree

from trainer.data import DataError, Source, describe, open_dataset
from trainer.data.folder_index import cache_file, load_index


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "photos")


def source(tree: Path, side: int = 24) -> Source:
    return Source(name="folder", folder=str(tree), side=side)


def test_classes_are_the_folders_by_name_and_label_their_images(tree: Path) -> None:
    index = load_index(str(tree))
    assert index.classes == ("ant", "bee", "cat")
    assert index.names["train"][4] == b"bee/0.JPEG"
    assert index.labels["train"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert index.labels["test"].tolist() == [0, 0, 1, 1, 2, 2]


def test_description_counts_images_and_classes(tree: Path) -> None:
    info = describe(source(tree))
    assert (info.train_images, info.test_images, info.num_classes) == (12, 6, 3)
    assert (info.channels, info.side) == (3, 24)
    assert describe(Source(name="folder", folder=str(tree))).side == 224


def test_other_files_and_hidden_folders_are_no_images(tree: Path) -> None:
    (tree / "train" / "ant" / "notes.txt").write_text("x")
    (tree / "train" / ".cache").mkdir()
    assert describe(source(tree)).train_images == 12


def test_index_is_kept_and_used_again(tree: Path) -> None:
    load_index(str(tree))
    kept = cache_file(str(tree))
    assert kept.exists()
    before = kept.stat().st_mtime_ns
    index = load_index(str(tree))
    assert kept.stat().st_mtime_ns == before
    fresh = load_index(str(tree), cache=False)
    assert index.classes == fresh.classes
    for split in ("train", "test"):
        np.testing.assert_array_equal(index.names[split], fresh.names[split])
        np.testing.assert_array_equal(index.labels[split], fresh.labels[split])


def remove_a_file(tree: Path) -> None:
    (tree / "train" / "ant" / "0.JPEG").unlink()


def remove_a_class(tree: Path) -> None:
    shutil.rmtree(tree / "train" / "ant")
    shutil.rmtree(tree / "val" / "ant")


@pytest.mark.parametrize(("change", "left"), [(remove_a_file, 11), (remove_a_class, 8)])
def test_a_changed_folder_is_listed_again(tree: Path, change, left: int) -> None:
    load_index(str(tree))
    for folder in (tree / "train", tree / "train" / "ant"):  # the kept index is of long ago
        os.utime(folder, (1, 1))
    load_index(str(tree))
    change(tree)
    assert len(load_index(str(tree)).labels["train"]) == left


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not a zip", None])
def test_a_damaged_or_missing_kept_index_is_made_anew(tree: Path, damage: bytes | None) -> None:
    load_index(str(tree))
    file = cache_file(str(tree))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert len(load_index(str(tree)).labels["train"]) == 12
    assert file.stat().st_size == len(whole)


def test_without_a_place_to_keep_it_the_index_is_made_each_time(tree, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    assert len(load_index(str(tree)).labels["train"]) == 12


def empty_class(tree: Path) -> None:
    for file in (tree / "train" / "bee").iterdir():
        file.unlink()


def flat(tree: Path) -> None:
    shutil.rmtree(tree / "val")
    (tree / "val").mkdir()
    photo(9, 9, 0).save(tree / "val" / "1.JPEG")


def move(old: str, new: str):
    return lambda tree: (tree / old).rename(tree / new)


REFUSALS = [
    (shutil.rmtree, r"--data-dir \S+: there is no such folder; it must hold train/CLASS/\*.JPEG"),
    (lambda tree: shutil.rmtree(tree / "val"), "there is no folder val in it; it must hold"),
    (lambda tree: shutil.rmtree(tree / "train"), "there is no folder train in it; it must hold"),
    (flat, "val has no class folders; it must hold"),
    (empty_class, r"class folder train/bee has no images \(.jpeg, .*\); fill it, or remove"),
    (move("val/cat", "val/cow"), r"val lacks 1 class folders that train has \(cat\); give both"),
    (lambda t: (t / "val/dog").mkdir(), r"train lacks 1 class folders that val has \(dog\)"),
]


@pytest.mark.parametrize(("harm", "says"), REFUSALS)
def test_a_wrong_folder_is_refused_in_one_line(tree: Path, harm, says: str) -> None:
    harm(tree)
    with pytest.raises(DataError, match=says) as caught:
        describe(source(tree))
    assert "\n" not in str(caught.value)


def test_no_folder_is_refused() -> None:
    with pytest.raises(DataError, match="--data folder: give its folder by --data-dir"):
        describe(Source(name="folder"))


def test_batches_have_the_promised_shapes_and_types(tree: Path) -> None:
    folder = open_dataset(source(tree))
    for images, labels in (
        folder.train_batch(np.array([0, 5, 11]), seed=0, epoch=0),
        folder.test_batch(np.array([0, 3, 5])),
    ):
        assert (images.shape, images.dtype) == ((3, 3, 24, 24), torch.uint8)
        assert (labels.tolist(), labels.dtype) == ([0, 1, 2], torch.int64)


def test_an_augmented_image_depends_on_seed_epoch_and_index_alone(tree: Path) -> None:
    folder = open_dataset(source(tree))
    many, _ = folder.train_batch(np.arange(12), seed=3, epoch=2)
    for i in (0, 7, 11):
        alone, _ = folder.train_batch(np.array([i]), seed=3, epoch=2)
        assert torch.equal(alone[0], many[i])
    for seed, epoch in ((3, 1), (4, 2)):
        assert not torch.equal(folder.train_batch(np.arange(12), seed=seed, epoch=epoch)[0], many)


def test_test_images_are_not_augmented(tree: Path) -> None:
    folder = open_dataset(source(tree))
    assert torch.equal(folder.test_batch(np.arange(6))[0], folder.test_batch(np.arange(6))[0])
    assert folder.test_batch(np.array([1]))[0].float().std() > 1


def test_an_image_that_cannot_be_read_is_named(tree: Path) -> None:
    bad = tree / "train" / "bee" / "1.JPEG"
    bad.write_bytes(bad.read_bytes()[:700])
    folder = open_dataset(source(tree))
    with pytest.raises(DataError, match=r"bee/1.JPEG: .*[Tt]runcated"):
        folder.train_batch(np.arange(12), seed=0, epoch=0)
