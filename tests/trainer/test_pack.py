"""Packed files: what goes in comes out, and a wrong file is refused in one line."""

from __future__ import annotations

import json
import zlib
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


def header_of(data: bytes) -> dict:
    return json.loads(data[16 : 16 + int.from_bytes(data[12:16], "little")])


def edit(data: bytes, **changes: object) -> bytes:
    """The file with other fields in its header, and the checksum of that."""
    text = json.dumps({**header_of(data), **changes}).encode()
    head = (data[:12] + len(text).to_bytes(4, "little") + text).ljust(4096, b"\0")
    return head + data[4096:-4] + zlib.crc32(head).to_bytes(4, "little")


def of_version_1(data: bytes) -> bytes:
    """The file as the first release wrote it, which had no checksums."""
    fields = header_of(data)
    images = fields["train_images"] + fields["test_images"]
    size = images * (fields["height"] * fields["width"] * fields["channels"] + 4)
    del fields["block_images"]
    text = json.dumps(fields).encode()
    head = data[:8] + (1).to_bytes(4, "little") + len(text).to_bytes(4, "little") + text
    return head.ljust(4096, b"\0") + data[4096 : 4096 + size]


def flip(path: Path, offset: int) -> None:
    """Changes one bit of a file; a negative offset is from its end."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 8
    path.write_bytes(data)


IMAGE = 32 * 32 * 3  # bytes of a photo here: 21 of them share a checksum
PHOTO_BLOCKS = [(0, 0), (20, 0), (21, 1), (89, 4), (90, 4), (101, 4)]


@pytest.mark.parametrize(("row", "block"), PHOTO_BLOCKS)
def test_a_flipped_bit_in_a_photo_is_found_at_first_use(photos, tmp_path, row, block) -> None:
    file = tmp_path / "file"
    file.write_bytes(photos[1].read_bytes())
    flip(file, 4096 + row * IMAGE + 77)
    dataset = open_dataset(packed(file))  # as from a good one: nothing was used yet
    split = dataset.train_batch if row < 90 else dataset.test_batch
    more = {"seed": 0, "epoch": 0} if row < 90 else {}
    says = (
        rf"image {row}: {file}: block {block} \(images {21 * block} to .*\) is damaged, .* or make"
    )
    with pytest.raises(DataError, match=says):
        split(np.array([row if row < 90 else row - 90]), **more)
    other = np.array([30 if block != 1 else 0])  # in another block
    assert torch.equal(
        dataset.train_batch(other, seed=0, epoch=0)[0],
        open_dataset(packed(photos[1])).train_batch(other, seed=0, epoch=0)[0],
    )


def test_every_block_has_its_checksum(photos) -> None:
    header, images, _ = packed_file.open_arrays(str(photos[1]))
    assert (header.block_images, header.sums) == (21, 5 + 2)
    assert images.all().shape == (102, 32, 32, 3)


@pytest.mark.parametrize("name", ["digits", "fashion"])
def test_a_flipped_bit_in_a_small_image_is_found(tmp_path: Path, name: str) -> None:
    folder = write_fashion(tmp_path / "fashion") if name == "fashion" else ""
    file = tmp_path / "file"
    pack(Source(name=name, folder=str(folder)), file)
    flip(file, 4096 + 100)
    with pytest.raises(DataError, match=rf"^{file}: block 0 \(images 0 to"):
        open_dataset(packed(file))


@pytest.mark.parametrize(
    ("offset", "says"),
    [
        (4000, "its header is damaged; copy it again"),  # in its padding
        (-4, "its header is damaged"),
        (-8, "its labels are damaged; copy it again"),
        (4096 + 1797 * 64 + 5, "its labels are damaged"),
    ],
)
def test_a_flipped_bit_elsewhere_is_found_before_the_run(tmp_path: Path, offset, says) -> None:
    file = tmp_path / "file"
    pack(Source(), file)
    flip(file, offset)
    with pytest.raises(DataError, match=says):
        describe(packed(file))


def test_a_file_of_the_first_release_is_read_with_a_note(photos, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_bytes(of_version_1(photos[1].read_bytes()))
    info = describe(packed(old))
    assert info.note.startswith(f"{old} has no checksums, damage to it is not noticed; make it ag")
    assert describe(packed(photos[1])).note == ""
    some = np.arange(90)
    ours, theirs = (open_dataset(packed(path)) for path in (old, photos[1]))
    for a, b in zip(
        ours.train_batch(some, seed=1, epoch=2), theirs.train_batch(some, seed=1, epoch=2),
        strict=True,
    ):  # fmt: skip
        assert torch.equal(a, b)


REFUSALS = [
    (lambda data: b"", "is no packed file; make it again by python -m trainer.pack"),
    (lambda data: b"JPEG" + data[4:], "is no packed file"),
    (lambda data: data[:8] + b"\3" + data[9:], "is of version 3, this release reads 1 and 2; make"),
    (lambda data: data[:8] + b"\1" + data[9:], "its header is damaged"),
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
