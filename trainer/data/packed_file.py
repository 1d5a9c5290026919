"""The packed format: all images of a data set in one file of uint8, mapped into memory.

    "HIERPACK" | version, header's length: uint32 | header: JSON | zeros up to 4096 |
    images, training ones first: uint8 (n, height, width, channels) | labels: int32 (n,)

Numbers are little-endian. The header's fields are those of `Header`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
import numpy.typing as npt

from trainer.data import IMAGENET, DataError, DatasetInfo, Source
from trainer.data.decoding import Pixels

__all__ = ["Header", "Writer", "describe", "open_arrays", "read_header"]

_MAGIC, _VERSION, _ALIGN = b"HIERPACK", 1, 4096
_HEAD = struct.Struct("<8sII")
_AGAIN = "make it again by python -m trainer.pack"
Moments = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a packed file holds.

    `kind` says how its images are augmented: as those of the data set "digits" or "fashion", or as
    photos ("folder"). `moments` are mean and deviation per channel by side, as text; "" for any.
    """

    kind: str
    train_images: int
    test_images: int
    height: int
    width: int
    channels: int
    classes: tuple[str, ...]
    moments: dict[str, Moments]

    @property
    def images(self) -> int:
        """All images."""
        return self.train_images + self.test_images

    @property
    def image_bytes(self) -> int:
        """Bytes of one image."""
        return self.height * self.width * self.channels


def describe(source: Source) -> DatasetInfo:
    """What the header says, after a look at the file's size and labels."""
    header, _ = read_header(source.folder)
    sides = [int(side) for side in header.moments if side]
    side = source.side or (sides[0] if sides else round(header.height * 224 / 256))
    if sides and side not in sides:
        raise DataError(
            f"--side {side}: {source.folder} is shown at {', '.join(map(str, sides))} only"
        )
    mean, std = header.moments[str(side) if sides else ""]
    return dataclasses.replace(
        IMAGENET,
        train_images=header.train_images,
        test_images=header.test_images,
        num_classes=len(header.classes),
        channels=header.channels,
        side=side,
        mean=mean,
        std=std,
        summary=f"{header.images} packed images ({header.kind}) in {source.folder}",
    )


def read_header(path: str) -> tuple[Header, int]:
    """The header and where images begin; DataError, which names --data-dir, for a wrong file."""
    if not path:
        raise DataError(
            "--data packed: give its file by --data-dir; python -m trainer.pack makes it"
        )
    if not Path(path).is_file():
        raise DataError(
            f"--data-dir {path}: there is no such file; python -m trainer.pack makes it"
        )
    try:
        with open(path, "rb") as stream:
            head = stream.read(_HEAD.size)
            if len(head) < _HEAD.size or not head.startswith(_MAGIC):
                raise DataError(f"--data-dir {path}: is no packed file; {_AGAIN}")
            _, version, length = _HEAD.unpack(head)
            if version != _VERSION:
                raise DataError(
                    f"--data-dir {path}: is of version {version}, this release reads "
                    f"{_VERSION}; {_AGAIN}"
                )
            header = _parse(stream.read(length))
            first = _aligned(_HEAD.size + length)
            _check_contents(path, stream, header, first)
    except OSError as error:
        raise DataError(f"--data-dir {path}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"--data-dir {path}: its header is damaged; {_AGAIN}") from None
    return header, first


def _parse(text: bytes) -> Header:
    fields = json.loads(text)
    fields["classes"] = tuple(map(str, fields["classes"]))
    moments = {side: (tuple(m), tuple(s)) for side, (m, s) in fields["moments"].items()}
    return Header(**{**fields, "moments": moments})


def _check_contents(path: str, stream: IO[bytes], header: Header, first: int) -> None:
    size = os.fstat(stream.fileno()).st_size
    expected = first + header.images * (header.image_bytes + 4)
    if size != expected:
        raise DataError(
            f"--data-dir {path}: has {size} bytes where {expected} belong, it was cut short or "
            f"damaged; copy it again, or {_AGAIN}"
        )
    stream.seek(expected - 4 * header.images)
    labels = np.frombuffer(stream.read(), "<i4")
    if not header.train_images or labels.min() < 0 or labels.max() >= len(header.classes):
        raise DataError(
            f"--data-dir {path}: holds labels up to {labels.max(initial=0)}, but its "
            f"header names {len(header.classes)} classes; {_AGAIN}"
        )


def open_arrays(path: str) -> tuple[Header, Pixels, npt.NDArray[np.int64]]:
    """Header, images (mapped, not read: uint8 (n, height, width, channels)) and labels."""
    header, first = read_header(path)
    shape = (header.images, header.height, header.width, header.channels)
    images = np.memmap(path, np.uint8, "r", first, shape)
    labels = np.fromfile(path, "<i4", offset=first + header.images * header.image_bytes)
    return header, images, labels.astype(np.int64)


class Writer:
    """Writes a packed file, image by image; it appears when it is complete. A context manager.

    `header` may promise more images than come, of each split: the counts are set at the end.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self._path, self._part = path, path.with_name(path.name + ".part")
        self._header = header
        self._labels: list[npt.NDArray[np.int32]] = []
        self._length = len(_json(header))
        self._stream = self._part.open("wb")
        self._stream.write(bytes(_aligned(_HEAD.size + self._length)))

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self._stream.close()
            self._part.unlink(missing_ok=True)

    def write(self, images: Pixels, labels: npt.NDArray[np.integer]) -> None:
        """Appends images (m, height, width, channels) and their labels; training ones first."""
        self._stream.write(np.ascontiguousarray(images).data)
        self._labels.append(labels.astype("<i4"))

    def finish(self, *, train_images: int, test_images: int) -> Header:
        """Writes labels and header, and gives the file its name."""
        header = dataclasses.replace(
            self._header, train_images=train_images, test_images=test_images
        )
        self._stream.write(np.concatenate(self._labels).data)
        self._stream.seek(0)
        self._stream.write(_HEAD.pack(_MAGIC, _VERSION, self._length))
        self._stream.write(_json(header).ljust(self._length))
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        self._part.replace(self._path)
        return header


def _json(header: Header) -> bytes:
    return json.dumps(dataclasses.asdict(header)).encode()


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGN) * _ALIGN
