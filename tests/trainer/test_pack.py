"""Packed files: what goes in comes out, and a wrong file is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fashion_files import write as write_fashion
from photo_trees import write_tree
from PIL import Image

from trainer.data import DataError, Source, describe, open_dataset, packed_file
from trainer.pack import main, pack


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> tuple[Path, Path]:
    """A folder of photos, and the file made of it by two processes."""
    folder = tmp_path_factory.mktemp("pack")
    tree = write_tree(folder / "photos", train=30, test=4)
    out = folder / "photos.packed"
    pack(Source(name="folder", folder=str(tree)), out, side=32, workers=2)
    return tree, out


def packed(path: Path, side: int = 0) -> Source:
    return Source(name="packed", folder=str(path), side=side)


def test_photos_are_the_middle_squares_in_the_order_of_the_folder(photos) -> None:
    tree, out = photos
    header, images, labels = packed_file.open_arrays(str(out))
    assert (header.train_images, header.test_images) == (90, 12)
    assert header.classes == ("ant", "bee", "cat")
    assert labels.tolist() == [0] * 30 + [1] * 30 + [2] * 30 + [0] * 4 + [1] * 4 + [2] * 4
    for row, file in ((0, "train/ant/0"), (31, "train/bee/1"), (101, "val/cat/3")):
        with Image.open(tree / f"{file}.JPEG") as photo:
            side = min(photo.size)
            left, top = (photo.width - side) / 2, (photo.height - side) / 2
            square = (left, top, left + side, top + side)
            expected = photo.resize((32, 32), Image.Resampling.BILINEAR, box=square)
        np.testing.assert_array_equal(images[row], np.asarray(expected))


def test_packed_photos_are_cropped_by_a_pure_function(photos) -> None:
    dataset = open_dataset(packed(photos[1], side=16))
    many, labels = dataset.train_batch(np.arange(90), seed=1, epoch=2)
    assert (many.shape, many.dtype) == ((90, 3, 16, 16), torch.uint8)
    assert labels.tolist() == [0] * 30 + [1] * 30 + [2] * 30
    alone, _ = dataset.train_batch(np.array([7]), seed=1, epoch=2)
    assert torch.equal(alone[0], many[7])
    assert not torch.equal(dataset.train_batch(np.arange(90), seed=1, epoch=3)[0], many)
    assert dataset.test_batch(np.arange(12))[0].shape == (12, 3, 16, 16)


def test_the_usual_side_keeps_the_paper_s_ratio(photos) -> None:
    info = describe(packed(photos[1]))
    assert (info.side, info.train_images, info.test_images, info.num_classes) == (28, 90, 12, 3)
    assert info.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("side", [32, 14])
def test_packed_fashion_is_fashion(tmp_path: Path, side: int) -> None:
    folder = write_fashion(tmp_path / "fashion")
    source = Source(name="fashion", folder=str(folder), side=side)
    pack(source, tmp_path / "out")
    ours, theirs = open_dataset(packed(tmp_path / "out", side)), open_dataset(source)
    assert ours.info.side == theirs.info.side
    assert (ours.info.mean, ours.info.std) == (theirs.info.mean, theirs.info.std)
    check_equal(ours, theirs)


def test_packed_digits_are_digits(tmp_path: Path) -> None:
    pack(Source(), tmp_path / "out")
    ours, theirs = open_dataset(packed(tmp_path / "out")), open_dataset(Source())
    assert (ours.info.mean, ours.info.std) == (theirs.info.mean, theirs.info.std)
    check_equal(ours, theirs)


def check_equal(ours, theirs) -> None:
    some = np.array([0, 3, 8])
    for a, b in (
        (ours.train_batch(some, seed=1, epoch=2), theirs.train_batch(some, seed=1, epoch=2)),
        (ours.test_batch(some), theirs.test_batch(some)),
    ):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


@pytest.mark.parametrize("policy", ["fail", "skip"])
def test_a_photo_that_cannot_be_read_ends_packing_or_is_left_out(
    tmp_path: Path, capsys, policy: str
) -> None:
    tree = write_tree(tmp_path / "photos", train=2, test=1)
    bad = tree / "train" / "bee" / "0.JPEG"
    bad.write_bytes(b"no photo")
    out = tmp_path / "out"
    arguments = [str(out), "--data-dir", str(tree), "--side=8", "--workers=1"]
    code = main([*arguments, "--bad-images", policy])
    printed = capsys.readouterr()
    assert "bee/0.JPEG: cannot identify image file" in printed.err
    if policy == "fail":
        assert code == 2
        assert printed.err.startswith("trainer.pack: ")
        assert list(tmp_path.glob("out*")) == []
    else:
        assert code == 0
        assert "5 training and 3 test images, 8x8x3, 3 classes" in printed.out
        _, _, labels = packed_file.open_arrays(str(out))
        assert labels.tolist() == [0, 0, 1, 2, 2, 0, 1, 2]


PACK_REFUSALS = [
    (["--side=4"], "--side 4: give 8 to 4096 pixels"),
    (["--workers=0"], "--workers 0: give a whole number from 1 up"),
    (["--data-dir=/nowhere"], "--data-dir /nowhere: there is no such folder"),
    (["--data=digits"], "is there already; remove it, or name another file"),
]


@pytest.mark.parametrize(("argv", "says"), PACK_REFUSALS)
def test_pack_refuses_in_one_line(tmp_path: Path, capsys, argv: list[str], says: str) -> None:
    (tmp_path / "out").write_text("precious")
    assert main([str(tmp_path / "out"), *argv]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert says in error
    assert (tmp_path / "out").read_text() == "precious"


def edit(data: bytes, **changes: object) -> bytes:
    """The file with other fields in its header."""
    length = int.from_bytes(data[12:16], "little")
    text = json.dumps({**json.loads(data[16 : 16 + length]), **changes}).encode()
    return data[:12] + len(text).to_bytes(4, "little") + text + data[16 + len(text) :]


REFUSALS = [
    (lambda data: b"", "is no packed file; make it again by python -m trainer.pack"),
    (lambda data: b"JPEG" + data[4:], "is no packed file"),
    (lambda data: data[:8] + b"\2" + data[9:], "is of version 2, this release reads 1; make it"),
    (lambda data: data[:-1], r"has \d+ bytes where \d+ belong, it was cut short"),
    (lambda data: data[:2000], "it was cut short"),
    (lambda data: data + b"x", "it was cut short or damaged"),
    (lambda data: data[:20] + b"}" + data[21:], "its header is damaged; make it again"),
    (lambda data: edit(data, classes=["0", "1"]), "holds labels up to 9, but its header names 2"),
    (lambda data: edit(data, train_images=1000), "it was cut short"),
    (lambda data: edit(data, colour="red"), "its header is damaged"),
    (lambda data: edit(data, height="x"), "its header is damaged"),
]


@pytest.mark.parametrize(("harm", "says"), REFUSALS)
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, harm, says: str) -> None:
    file = tmp_path / "file"
    pack(Source(), file)
    file.write_bytes(harm(file.read_bytes()))
    with pytest.raises(DataError, match=says) as caught:
        describe(packed(file))
    assert str(caught.value).startswith(f"--data-dir {file}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("", "--data packed: give its file by --data-dir; python -m trainer.pack makes it"),
        ("/nowhere", "--data-dir /nowhere: there is no such file; python -m trainer.pack"),
    ],
)
def test_a_missing_file_is_refused(path: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        describe(Source(name="packed", folder=path))


def test_a_side_that_the_file_does_not_have_is_refused(tmp_path: Path) -> None:
    pack(Source(), tmp_path / "file")
    with pytest.raises(DataError, match=r"--side 28: .* is shown at 32 only"):
        describe(packed(tmp_path / "file", 28))
