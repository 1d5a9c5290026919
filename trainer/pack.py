"""`python -m trainer.pack`: makes one memory-mapped file of uint8 out of a data set."""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import shutil
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import numpy as np

from trainer.data import DataError, DatasetInfo, Source, describe, photos
from trainer.data.decoding import Failure, Indices, Pixels
from trainer.data.folder_index import FOLDERS, load_index
from trainer.data.packed_file import Header, Moments, Writer

__all__ = ["main", "pack"]

_PIECE = 64  # photos that a process decodes at a time
_FASHION_SIDES = (32, 28, 14)  # the first is the usual one


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 0, or 2 after one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m trainer.pack", description=__doc__)
    parser.add_argument("out", type=Path, help="the file to make")
    parser.add_argument("--data", default="folder", choices=("folder", "fashion", "digits"))
    parser.add_argument("--data-dir", default="", metavar="DIR", help="its folder")
    parser.add_argument(
        "--side", type=int, default=256,
        help="of photos: the middle square is scaled to so many pixels (default: 256)",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)),
        help="processes that decode photos (default: one per core)",
    )  # fmt: skip
    parser.add_argument(
        "--bad-images", default="fail", choices=("fail", "skip"),
        help="for files that cannot be read: end, or leave them out and name them",
    )  # fmt: skip
    options = parser.parse_args(argv)
    try:
        header, bad = pack(
            Source(name=options.data, folder=options.data_dir),
            options.out,
            side=options.side,
            workers=options.workers,
            skip_bad=options.bad_images == "skip",
        )
    except (DataError, OSError) as error:
        print(f"trainer.pack: {error}", file=sys.stderr)
        return 2
    for reason in bad:
        print(f"left out: {reason}", file=sys.stderr)
    print(
        f"{options.out}: {header.train_images:,} training and {header.test_images:,} test images, "
        f"{header.height}x{header.width}x{header.channels}, {len(header.classes):,} classes, "
        f"{options.out.stat().st_size / 1e6:,.1f} MB; {len(bad)} left out"
    )
    return 0


def pack(
    source: Source, out: Path, *, side: int = 256, workers: int = 1, skip_bad: bool = False
) -> tuple[Header, list[str]]:
    """Writes `out`; what it holds, and the words of each image that was left out.

    DataError for a source that cannot be had, an image that cannot be read (unless `skip_bad`), or
    no room for the file; the file appears when it is complete.
    """
    if not 8 <= side <= 4096:
        raise DataError(f"--side {side}: give 8 to 4096 pixels")
    if workers < 1:
        raise DataError(f"--workers {workers}: give a whole number from 1 up")
    info = describe(source)
    if out.exists():
        raise DataError(f"{out}: is there already; remove it, or name another file")
    header = _header(source, info, side)
    needed = header.content_bytes
    free = shutil.disk_usage(out.absolute().parent).free
    if needed > free:
        raise DataError(f"{out}: needs {needed:,} bytes, {free:,} are free there; make room")
    with Writer(out, header) as writer:
        if source.name == "folder":
            counts, bad = _write_photos(writer, source, side, workers, skip_bad)
        else:
            writer.write(*_grey(source))
            counts, bad = {"train": info.train_images, "test": info.test_images}, []
        done = writer.finish(train_images=counts["train"], test_images=counts["test"])
    return done, bad


def _header(source: Source, info: DatasetInfo, side: int) -> Header:
    classes = tuple(map(str, range(info.num_classes)))
    moments: dict[str, Moments]
    if source.name == "folder":
        height = width = side
        classes, moments = load_index(source.folder).classes, {"": (info.mean, info.std)}
    elif source.name == "fashion":
        height = width = 28
        infos = [
            describe(Source(name="fashion", folder=source.folder, side=side))
            for side in _FASHION_SIDES
        ]
        moments = {str(info.side): (info.mean, info.std) for info in infos}
    else:
        height = width = 8
        moments = {str(info.side): (info.mean, info.std)}
    return Header(
        kind=source.name,
        train_images=info.train_images,
        test_images=info.test_images,
        height=height,
        width=width,
        channels=info.channels,
        classes=classes,
        moments=moments,
    )


def _grey(source: Source) -> tuple[Pixels, Indices]:
    if source.name == "fashion":
        from trainer.data import fashion_files

        images, labels = fashion_files.read(source)
    else:
        from trainer.data import digits

        images, labels = digits.read()
    return images[..., None], labels


def _write_photos(
    writer: Writer, source: Source, side: int, workers: int, skip_bad: bool
) -> tuple[dict[str, int], list[str]]:
    index, counts, bad = load_index(source.folder), dict.fromkeys(FOLDERS, 0), []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for split, folder in FOLDERS.items():
            labels = index.labels[split]
            names = [os.fsdecode(name) for name in index.names[split].tolist()]
            paths = [os.path.join(source.folder, folder, name) for name in names]
            for first, (pixels, failures) in _decoded(pool, paths, side, 2 * workers):
                if failures and not skip_bad:
                    raise DataError(
                        f"{failures[0].reason}: mend or remove it, or --bad-images skip"
                    )
                good = np.setdiff1d(np.arange(len(pixels)), [f.row for f in failures])
                writer.write(pixels[good], labels[first + good])
                counts[split] += len(good)
                bad += [failure.reason for failure in failures]
    if not counts["train"]:
        raise DataError(f"--data-dir {source.folder}: no training image can be read")
    return counts, bad


Decoded = tuple[Pixels, list[Failure]]


def _decoded(
    pool: ProcessPoolExecutor, paths: list[str], side: int, ahead: int
) -> Iterator[tuple[int, Decoded]]:
    """The photos piece by piece, each with the number of its first; at most `ahead` are begun."""
    under_way: deque[tuple[int, Future[Decoded]]] = deque()
    for first in range(0, len(paths), _PIECE):
        if len(under_way) == ahead:
            number, future = under_way.popleft()
            yield number, future.result()
        under_way.append((first, pool.submit(_squares, paths[first : first + _PIECE], side)))
    for number, future in under_way:
        yield number, future.result()


def _squares(paths: list[str], side: int) -> Decoded:
    pixels = np.empty((len(paths), side, side, 3), np.uint8)
    files = [(path, functools.partial(photos.decode, path)) for path in paths]
    return pixels, photos.make(files, [photos.square] * len(paths), pixels)


if __name__ == "__main__":
    sys.exit(main())
