"""The packed format: all images of a data set in one file of uint8, mapped into memory.

    "HIERPACK" | version, header's length: uint32 | header: JSON | zeros up to 4096 |
    images, training ones first: uint8 (n, height, width, channels) | labels: int32 (n,) |
    CRC-32 of each block of images, of the labels, of all before the images: uint32

Numbers are little-endian. The header's fields are those of `Header`. Version 1 had no checksums; it
is still read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
import numpy.typing as npt

from trainer.data import IMAGENET, DataError, DatasetInfo, Source
from trainer.data.decoding import Pixels

__all__ = ["Header", "PackedImages", "Writer", "describe", "open_arrays", "read_header"]

_MAGIC, _VERSIONS, _ALIGN = b"HIERPACK", (1, 2), 4096
_BLOCK = 1 << 16  # bytes: small images share a checksum, a photo has its own
_HEAD = struct.Struct("<8sII")
_AGAIN = "make it again by python -m trainer.pack"
Moments = tuple[tuple[float, ...], tuple[float, ...]]
Sums = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a packed file holds.

    `kind` says how its images are augmented: as those of the data set "digits" or "fashion", or as
    photos ("folder"). `moments` are mean and deviation per channel by side, as text; "" for any.
    So many images (the last time fewer) share a checksum: `block_images`, 0 in version 1.
    """

    kind: str
    train_images: int
    test_images: int
    height: int
    width: int
    channels: int
    classes: tuple[str, ...]
    moments: dict[str, Moments]
    block_images: int = 0

    @property
    def images(self) -> int:
        """All images."""
        return self.train_images + self.test_images

    @property
    def image_bytes(self) -> int:
        """Bytes of one image."""
        return self.height * self.width * self.channels

    @property
    def sums(self) -> int:
        """Checksums in the file."""
        return -(-self.images // self.block_images) + 2 if self.block_images else 0

    @property
    def content_bytes(self) -> int:
        """Bytes of images, labels and checksums."""
        return self.images * (self.image_bytes + 4) + 4 * self.sums

    @property
    def block_size(self) -> int:
        """How many images share a checksum where they are packed now."""
        return max(1, _BLOCK // self.image_bytes)


class PackedImages:
    """The images of a packed file, mapped and not read: uint8 (n, height, width, channels).

    Each block is checked when one of its images is first asked for. Threads may ask at once.
    """

    def __init__(self, path: str, pixels: Pixels, block_images: int, sums: Sums) -> None:
        self._path, self._pixels, self._block_images, self._sums = path, pixels, block_images, sums
        self._checked = np.zeros(len(sums), bool)

    def __getitem__(self, row: int) -> Pixels:
        """One image. DataError, which names file and block, if its block is damaged."""
        if len(self._sums):
            self._check(row // self._block_images)
        image: Pixels = self._pixels[row]
        return image

    def all(self) -> Pixels:
        """All images. DataError as for one."""
        for block in range(len(self._sums)):
            self._check(block)
        return self._pixels

    def _check(self, block: int) -> None:
        if self._checked[block]:
            return
        first = block * self._block_images
        pixels = self._pixels[first : first + self._block_images]
        if zlib.crc32(pixels.data) != self._sums[block]:
            last = first + len(pixels) - 1
            raise DataError(
                f"{self._path}: block {block} (images {first} to {last}) is damaged, its CRC-32 is "
                f"not the one it was packed with; copy the file again, or {_AGAIN}"
            )
        self._checked[block] = True


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
        note=""
        if header.block_images
        else f"{source.folder} has no checksums, damage to it is not noticed; {_AGAIN}",
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
            if version not in _VERSIONS:
                raise DataError(
                    f"--data-dir {path}: is of version {version}, this release reads "
                    f"{' and '.join(map(str, _VERSIONS))}; {_AGAIN}"
                )
            header = _parse(stream.read(length), version)
            first = _aligned(_HEAD.size + length)
            _check_contents(path, stream, header, first)
    except OSError as error:
        raise DataError(f"--data-dir {path}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"--data-dir {path}: its header is damaged; {_AGAIN}") from None
    return header, first


def _parse(text: bytes, version: int) -> Header:
    fields = json.loads(text)
    fields["classes"] = tuple(map(str, fields["classes"]))
    moments = {side: (tuple(m), tuple(s)) for side, (m, s) in fields["moments"].items()}
    header = Header(**{**fields, "moments": moments})
    if (header.block_images > 0) != (version > 1):
        raise ValueError
    return header


def _check_contents(path: str, stream: IO[bytes], header: Header, first: int) -> None:
    size = os.fstat(stream.fileno()).st_size
    expected = first + header.content_bytes
    if size != expected:
        raise DataError(
            f"--data-dir {path}: has {size} bytes where {expected} belong, it was cut short or "
            f"damaged; copy it again, or {_AGAIN}"
        )
    stream.seek(0)
    head = stream.read(first)
    stream.seek(first + header.images * header.image_bytes)
    text = stream.read(4 * header.images)
    if header.sums:
        stream.seek(expected - 8)
        sums = np.frombuffer(stream.read(8), "<u4").tolist()
        for what, data, crc in zip(("labels", "header"), (text, head), sums, strict=True):
            if zlib.crc32(data) != crc:
                raise DataError(
                    f"--data-dir {path}: its {what} {'are' if what == 'labels' else 'is'} damaged; "
                    f"copy it again, or {_AGAIN}"
                )
    labels = np.frombuffer(text, "<i4")
    if not header.train_images or labels.min() < 0 or labels.max() >= len(header.classes):
        raise DataError(
            f"--data-dir {path}: holds labels up to {labels.max(initial=0)}, but its "
            f"header names {len(header.classes)} classes; {_AGAIN}"
        )


def open_arrays(path: str) -> tuple[Header, PackedImages, npt.NDArray[np.int64]]:
    """Header, images and labels. DataError as `read_header`."""
    header, first = read_header(path)
    shape = (header.images, header.height, header.width, header.channels)
    pixels = np.memmap(path, np.uint8, "r", first, shape)
    after = first + header.images * header.image_bytes
    labels = np.fromfile(path, "<i4", header.images, offset=after)
    blocks = max(0, header.sums - 2)
    sums = np.fromfile(path, "<u4", blocks, offset=after + labels.nbytes)
    images = PackedImages(path, pixels, header.block_images, sums)
    return header, images, labels.astype(np.int64)


class Writer:
    """Writes a packed file, image by image; it appears when it is complete. A context manager.

    `header` may promise more images than come, of each split: the counts are set at the end.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self._path, self._part = path, path.with_name(path.name + ".part")
        self._header = header = dataclasses.replace(header, block_images=header.block_size)
        self._sums: list[int] = []  # of whole blocks
        self._crc = self._filled = 0  # of the block that is under way, and its images so far
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
        images = np.ascontiguousarray(images)
        self._stream.write(images.data)
        self._labels.append(labels.astype("<i4"))
        while len(images):
            part = images[: self._header.block_images - self._filled]
            images = images[len(part) :]
            self._crc, self._filled = zlib.crc32(part.data, self._crc), self._filled + len(part)
            if self._filled == self._header.block_images:
                self._end_block()

    def _end_block(self) -> None:
        self._sums.append(self._crc)
        self._crc = self._filled = 0

    def finish(self, *, train_images: int, test_images: int) -> Header:
        """Writes labels, checksums and header, and gives the file its name."""
        header = dataclasses.replace(
            self._header, train_images=train_images, test_images=test_images
        )
        if self._filled:
            self._end_block()
        labels = np.concatenate(self._labels).tobytes()
        head = _HEAD.pack(_MAGIC, _VERSIONS[-1], self._length) + _json(header).ljust(self._length)
        head = head.ljust(_aligned(len(head)), b"\0")
        sums = [*self._sums, zlib.crc32(labels), zlib.crc32(head)]
        self._stream.write(labels + np.array(sums, "<u4").tobytes())
        self._stream.seek(0)
        self._stream.write(head)
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        self._part.replace(self._path)
        return header


def _json(header: Header) -> bytes:
    return json.dumps(dataclasses.asdict(header)).encode()


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGN) * _ALIGN
