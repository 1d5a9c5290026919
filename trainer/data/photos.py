"""Photos: decoding, and the crops of training and validation (needs Pillow, and no torch).

simplejpeg decodes JPEG where it is installed: a little faster than Pillow, and to the same bits.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainer.data import DataError
from trainer.data.augment import uniforms
from trainer.data.decoding import Failure, Indices, Pixels

if TYPE_CHECKING:
    from PIL.Image import Image

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

__all__ = [
    "DRAWS",
    "Crop",
    "crops",
    "decode",
    "make",
    "middle_box",
    "need_pillow",
    "random_box",
    "square",
]

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels of the photo
Crop = Callable[[int, int], tuple[Box, bool]]  # of width and height: what to show, mirrored?

_TRIES = 10
DRAWS = 2 * _TRIES + 3  # random numbers for an image: area and shape of each try, place, mirror
_AREA = (0.08, 1.0)  # of the photo's
_ASPECT = (3 / 4, 4 / 3)  # width / height
_SHORT = 256 / 224  # of the side of a test crop: the shorter side of the photo before it


def need_pillow() -> None:
    """DataError that names the extra, where Pillow is missing."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise DataError(
            "--data folder and packed photos need Pillow: pip install 'hier-allreduce[photos]'"
        ) from None


def random_box(width: int, height: int, draws: Sequence[float]) -> Box:
    """The training crop: area and aspect ratio at random (paper, section 5.1; Szegedy et al.).

    Area uniform in (0.08, 1) of the photo's, aspect ratio log-uniform in (3/4, 4/3); after ten
    tries that do not fit, the largest crop in the middle. `draws`: DRAWS numbers in [0, 1).
    """
    for area, shape in zip(draws[0 : 2 * _TRIES : 2], draws[1 : 2 * _TRIES : 2], strict=True):
        target = width * height * (_AREA[0] + area * (_AREA[1] - _AREA[0]))
        aspect = _ASPECT[0] * (_ASPECT[1] / _ASPECT[0]) ** shape
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            left = int(draws[2 * _TRIES] * (width - w + 1))
            top = int(draws[2 * _TRIES + 1] * (height - h + 1))
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * _ASPECT[1])))
    h = min(height, max(1, round(width / _ASPECT[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def middle_box(width: int, height: int, side: int) -> Box:
    """The test crop: shorter side to 256 (for `side` 224), then the middle `side` x `side`.

    Both in one: the part of the photo that, scaled to `side`, gives the same pixels.
    """
    short = round(side * _SHORT)
    scale = short / min(width, height)
    wide, high = (
        short if size == min(width, height) else int(size * scale) for size in (width, height)
    )
    left, top = round((wide - side) / 2), round((high - side) / 2)
    x, y = width / wide, height / high
    return left * x, top * y, (left + side) * x, (top + side) * y


def square(width: int, height: int) -> tuple[Box, bool]:
    """A Crop: the largest square in the middle."""
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return (left, top, left + side, top + side), False


def decode(path: str) -> Image:
    """The photo in RGB. Whatever Pillow raises for a file that is no image, or not all of one."""
    from PIL import Image

    data = Path(path).read_bytes()
    if simplejpeg is not None and data[:2] == b"\xff\xd8":
        try:
            return Image.fromarray(simplejpeg.decode_jpeg(data, "RGB"))
        except ValueError:
            pass  # CMYK, which Pillow reads, or damaged, for which Pillow has the words
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def crops(augment: tuple[Indices, int, int] | None, count: int, side: int) -> list[Crop]:
    """The crop of each of `count` photos: of training images by (indices, seed, epoch), or test."""
    if augment is None:

        def middle(width: int, height: int) -> tuple[Box, bool]:
            return middle_box(width, height, side), False

        return [middle] * count
    indices, seed, epoch = augment
    draws = uniforms(indices, DRAWS, seed=seed, epoch=epoch).tolist()
    return [functools.partial(_random_crop, own) for own in draws]


def _random_crop(draws: list[float], width: int, height: int) -> tuple[Box, bool]:
    return random_box(width, height, draws), draws[-1] < 0.5


def make(
    photos: Sequence[tuple[str, Callable[[], Image]]], crops: Sequence[Crop], out: Pixels
) -> list[Failure]:
    """Crops, scales and perhaps mirrors each of `photos` (name, how to get it) into its row."""
    failures = []
    for row, ((name, get), crop) in enumerate(zip(photos, crops, strict=True)):
        reason = _make_one(get, crop, out[row])
        if reason:
            failures.append(Failure(row, f"{name}: {reason}"))
    return failures


def _make_one(get: Callable[[], Image], crop: Crop, out: Pixels) -> str:
    """Why it failed, or nothing."""
    from PIL.Image import Resampling, Transpose

    try:
        photo = get()
        box, mirror = crop(photo.width, photo.height)
        photo = photo.resize((len(out), len(out)), Resampling.BILINEAR, box=box)
    except Exception as error:  # decoders raise errors of many kinds
        return _words(error)
    if mirror:
        photo = photo.transpose(Transpose.FLIP_LEFT_RIGHT)
    out[:] = np.asarray(photo)
    return ""


def _words(error: Exception) -> str:
    lines = str(error).splitlines()
    return (lines[0] if lines else "") or type(error).__name__
