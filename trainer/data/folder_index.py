"""The index of an image folder: classes, file names, labels; kept, and made anew when stale."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.data import DataError

__all__ = ["FOLDERS", "FolderIndex", "cache_file", "load_index"]

FOLDERS = {"train": "train", "test": "val"}  # of each split, under the root
_SUFFIXES = (".jpeg", ".jpg", ".png", ".ppm", ".bmp", ".webp", ".tif", ".tiff")
_LAYOUT = "it must hold train/CLASS/*.JPEG and val/CLASS/*.JPEG"
_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderIndex:
    """All images of a folder. Class c is the c-th class folder by name, as in torchvision.

    `names` (bytes, as b"cat/1.jpeg" below the split's folder) and `labels` (int64) by split.
    """

    classes: tuple[str, ...]
    names: dict[str, npt.NDArray[np.bytes_]]
    labels: dict[str, npt.NDArray[np.int64]]


def load_index(root: str, *, cache: bool = True) -> FolderIndex:
    """The index of the folder `root` = --data-dir; DataError in one line if it is no image folder.

    Listing ImageNet takes minutes on a network disk, so the index is kept in `cache_file(root)`.
    It is stale when a folder was changed since, by the time the system keeps for each folder.
    """
    classes = _class_folders(Path(root) if root else None, root)
    stamp = _stamp(Path(root), classes)
    file = cache_file(root)
    found = _read(file, stamp) if cache else None
    if found is None:
        found = _scan(Path(root), classes)
        if cache:
            _write(file, stamp, found)
    return found


def cache_file(root: str) -> Path:
    """Where the index of this folder is kept: in the user's cache, by the folder's full path."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:16]
    return cache / "hier-allreduce" / f"index-{digest}.npz"


def _class_folders(path: Path | None, root: str) -> tuple[str, ...]:
    if path is None:
        raise DataError(f"--data folder: give its folder by --data-dir; {_LAYOUT}")
    if not path.is_dir():
        raise DataError(f"--data-dir {root}: there is no such folder; {_LAYOUT}")
    classes = {}
    for split in FOLDERS.values():
        if not (path / split).is_dir():
            raise DataError(f"--data-dir {root}: there is no folder {split} in it; {_LAYOUT}")
        try:
            with os.scandir(path / split) as entries:
                names = (e.name for e in entries if e.is_dir() and not e.name.startswith("."))
                classes[split] = set(names)
        except OSError as error:
            raise DataError(f"--data-dir {root}: {error}; {_LAYOUT}") from None
        if not classes[split]:
            raise DataError(f"--data-dir {root}: {split} has no class folders; {_LAYOUT}")
    for has, lacks in (("train", "val"), ("val", "train")):
        missing = sorted(classes[has] - classes[lacks])
        if missing:
            some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            raise DataError(
                f"--data-dir {root}: {lacks} lacks {len(missing)} class folders that {has} has "
                f"({some}); give both the same"
            )
    return tuple(sorted(classes["train"]))


def _stamp(root: Path, classes: tuple[str, ...]) -> str:
    """Changes whenever a file or folder is added, removed or renamed."""
    digest = hashlib.sha256(f"{_VERSION}".encode())
    for split in FOLDERS.values():
        for name in ("", *classes):
            changed = (root / split / name).stat().st_mtime_ns
            digest.update(f"{split}/{name}/{changed}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _scan(root: Path, classes: tuple[str, ...]) -> FolderIndex:
    names, labels = {}, {}
    for split, folder in FOLDERS.items():
        found: list[list[bytes]] = []
        for name in classes:
            with os.scandir(root / folder / name) as entries:
                files = sorted(e.name for e in entries if e.name.lower().endswith(_SUFFIXES))
            if not files:
                raise DataError(
                    f"--data-dir {root}: class folder {folder}/{name} has no images "
                    f"({', '.join(_SUFFIXES[:3])}, ...); fill it, or remove it from train and val"
                )
            found.append([os.fsencode(f"{name}/{file}") for file in files])
        names[split] = np.array([file for files_of in found for file in files_of])
        labels[split] = np.repeat(np.arange(len(classes)), [len(files_of) for files_of in found])
    return FolderIndex(classes=classes, names=names, labels=labels)


def _read(file: Path, stamp: str) -> FolderIndex | None:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if str(arrays["stamp"]) != stamp:
                return None
            return FolderIndex(
                classes=tuple(arrays["classes"].tolist()),
                names={split: arrays[f"{split}_names"] for split in FOLDERS},
                labels={split: arrays[f"{split}_labels"] for split in FOLDERS},
            )
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return None  # none yet, or a damaged one: it is only a copy


def _write(file: Path, stamp: str, index: FolderIndex) -> None:
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "stamp": np.array(stamp),
        "classes": np.array(index.classes),
        **{f"{split}_names": names for split, names in index.names.items()},
        **{f"{split}_labels": labels for split, labels in index.labels.items()},
    }
    # By no process id: two hosts that share the folder may have given the same one.
    part = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    with contextlib.suppress(OSError):  # no room, or no right to write: the next run lists again
        file.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
        part.replace(file)
    with contextlib.suppress(OSError):
        part.unlink(missing_ok=True)
