"""Photos: decoding, and the crops of training and validation (needs Pillow, and no torch).

simplejpeg decodes JPEG where it is installed: a third faster than Pillow, and to the same bits.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trainer.data import DataError
from trainer.data.augment import uniforms
from trainer.data.decoding import Failure, Indices, Pixels

if TYPE_CHECKING:
    from PIL.Image import Image

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

__all__ = ["DRAWS", "decode", "draws_of", "make", "middle_box", "need_pillow", "random_box"]

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels of the photo

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


def draws_of(augment: tuple[Indices, int, int] | None) -> npt.NDArray[np.float64] | None:
    """The random numbers for (indices, seed, epoch): float64 (n, DRAWS); None for test images."""
    if augment is None:
        return None
    indices, seed, epoch = augment
    return uniforms(indices, DRAWS, seed=seed, epoch=epoch)


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


def make(
    photos: Sequence[tuple[str, Callable[[], Image]]],
    draws: npt.NDArray[np.float64] | None,
    out: Pixels,
) -> list[Failure]:
    """Crops, scales and perhaps mirrors each of `photos` (name, how to get it) into its row.

    `draws`, float64 (n, DRAWS), makes training crops; without it they are test crops.
    """
    failures = []
    for row, (name, get) in enumerate(photos):
        reason = _make_one(get, None if draws is None else draws[row].tolist(), out[row])
        if reason:
            failures.append(Failure(row, f"{name}: {reason}"))
    return failures


def _make_one(get: Callable[[], Image], draws: list[float] | None, out: Pixels) -> str:
    """Why it failed, or nothing."""
    from PIL.Image import Resampling, Transpose

    side = len(out)
    try:
        photo = get()
        if draws is None:
            box = middle_box(photo.width, photo.height, side)
        else:
            box = random_box(photo.width, photo.height, draws)
        photo = photo.resize((side, side), Resampling.BILINEAR, box=box)
    except Exception as error:  # decoders raise errors of many kinds
        return _words(error)
    if draws is not None and draws[-1] < 0.5:
        photo = photo.transpose(Transpose.FLIP_LEFT_RIGHT)
    out[:] = np.asarray(photo)
    return ""


def _words(error: Exception) -> str:
    lines = str(error).splitlines()
    return (lines[0] if lines else "") or type(error).__name__
