"""Decoding and cropping of photos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from photo_trees import photo
from PIL import Image

from trainer.data import photos
from trainer.data.augment import uniforms
from trainer.data.photos import DRAWS, crops, decode, make, middle_box, random_box


def draws(count: int) -> list[list[float]]:
    return uniforms(np.arange(count), DRAWS, seed=0, epoch=0).tolist()


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (64, 64), (9, 300)])
def test_random_crops_lie_inside_the_photo(size: tuple[int, int]) -> None:
    for numbers in draws(500):
        left, top, right, bottom = random_box(*size, numbers)
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]


def test_random_crops_have_area_and_aspect_ratio_of_the_paper() -> None:
    boxes = [random_box(1000, 1000, numbers) for numbers in draws(4000)]
    width, height = np.array([(x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes], float).T
    area, aspect = width * height / 1e6, width / height
    assert 0.079 < area.min() < 0.1
    assert area.max() > 0.9
    assert 0.745 < aspect.min() < 0.76
    assert 1.32 < aspect.max() < 1.345
    assert np.median(np.log(aspect)) == pytest.approx(0, abs=0.02)
    assert np.median(area) == pytest.approx(0.46, abs=0.03)  # below 0.54: large ones fit less often


def test_a_photo_too_long_for_any_crop_gets_the_middle() -> None:
    assert random_box(9, 300, [0.999] * DRAWS) == (0, 144, 9, 156)
    assert random_box(300, 9, [0.999] * DRAWS) == (144, 0, 156, 9)


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (300, 300), (77, 200)])
def test_the_test_crop_is_resize_256_then_the_middle_224(size: tuple[int, int]) -> None:
    picture = photo(*size, 1)
    scale = 256 / min(size)
    wide, high = (256 if side == min(size) else int(side * scale) for side in size)
    left, top = round((wide - 224) / 2), round((high - 224) / 2)
    resized = picture.resize((wide, high), Image.Resampling.BILINEAR)
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224)), int)
    ours = picture.resize(
        (224, 224), Image.Resampling.BILINEAR, box=middle_box(*size, side=224)
    )  # fmt: skip
    assert np.abs(np.asarray(ours, int) - expected).max() <= 1


def test_half_of_the_training_images_are_mirrored() -> None:
    ramp = Image.fromarray(np.arange(64, dtype=np.uint8)[None, :, None].repeat(64, 0).repeat(3, 2))
    out = np.empty((200, 8, 8, 3), np.uint8)
    assert make([("ramp", lambda: ramp)] * 200, crops((np.arange(200), 0, 0), 200, 8), out) == []
    rising = (out[:, 4, 7, 0] > out[:, 4, 0, 0]).sum()
    assert 70 < rising < 130


@pytest.mark.skipif(photos.simplejpeg is None, reason="simplejpeg is not installed")
def test_simplejpeg_and_pillow_decode_to_the_same_bits(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "photo.jpeg"
    photo(50, 40, 0).save(path, quality=90)
    fast = np.asarray(decode(str(path)))
    monkeypatch.setattr(photos, "simplejpeg", None)
    np.testing.assert_array_equal(fast, np.asarray(decode(str(path))))


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_every_kind_of_jpeg_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "photo.jpeg"
    photo(50, 40, 0).convert(mode).save(path, quality=95)
    decoded = decode(str(path))
    assert (decoded.mode, decoded.size) == ("RGB", (50, 40))
    expected = np.asarray(photo(50, 40, 0).convert(mode).convert("RGB"), int)
    assert np.abs(np.asarray(decoded, int) - expected).mean() < 6


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp"])
def test_other_formats_are_read_by_their_content(tmp_path: Path, suffix: str) -> None:
    written = tmp_path / f"x.{suffix}"
    photo(50, 40, 0).save(written)
    path = written.rename(tmp_path / "x.JPEG")  # ImageNet has such a file
    assert decode(str(path)).size == (50, 40)


BAD = [
    (lambda data: b"", "cannot identify image file"),
    (lambda data: data[:-60], "image file is truncated"),
    (lambda data: b"<html>" + data, "cannot identify image file"),
]


@pytest.mark.parametrize(("harm", "says"), BAD)
def test_a_file_that_is_no_whole_image_is_reported_with_its_row(tmp_path, harm, says) -> None:
    good, bad = tmp_path / "good.jpeg", tmp_path / "bad.jpeg"
    photo(50, 40, 0).save(good)
    bad.write_bytes(harm(good.read_bytes()))
    files = [(str(path), lambda path=path: decode(str(path))) for path in (good, bad, good)]
    out = np.zeros((3, 8, 8, 3), np.uint8)
    (failure,) = make(files, crops(None, 3, 8), out)
    assert failure.row == 1
    assert failure.reason.startswith(f"{bad}: ")
    assert says in failure.reason
    assert "\n" not in failure.reason
    assert out[0].any()
    np.testing.assert_array_equal(out[0], out[2])
