"""Checkpoint files: written whole or not at all, checked when read, the newest ones kept.

A file is what `torch.save` writes, then the facts that need no torch (JSON), then a footer. So
`torch.load(path, weights_only=True)` reads it as any other, and the launcher can look at its
configuration in a millisecond.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any

from trainer.errors import TrainerError
from trainer.output.files import draft, write_whole

__all__ = ["CheckpointError", "Checkpoints", "Facts", "check", "read", "read_facts", "write"]

_FOOTER = struct.Struct("<7sBII")  # magic, version, length and CRC-32 of the JSON before it
_MAGIC, _VERSION = b"hierCkp", ord("1")
_NAME = re.compile(r"epoch_(\d+)_image_(\d+)\.pt")
_PART = 1 << 20  # bytes that are hashed at a time
_NEWER = "it was written by a newer release, which can go on from it"
_RECENT = 2  # the newest, and one before it should that one be damaged


class CheckpointError(TrainerError, ValueError):
    """A file that is no whole checkpoint; one line that names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a checkpoint says without torch: where the run was, and with which configuration.

    `offset` counts the images of the permutation of `epoch` (from 0) that are used up, in
    iterations of `minibatch` images that `workers` workers share; `progress` is the same in epochs.
    `best_error` is the lowest test error so far, `test` the newest test metrics, and `spent` what
    was measured, to go on from.
    """

    epoch: int
    offset: int
    iteration: int
    progress: float
    workers: int
    minibatch: int
    config: dict[str, Any]
    best_error: float | None = None
    test: dict[str, Any] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    sha256: str = ""
    nbytes: int = 0

    @property
    def name(self) -> str:
        """The file's name, which tells the position."""
        return f"epoch_{self.epoch:04d}_image_{self.offset:09d}.pt"

    @property
    def tested(self) -> bool:
        """Whether `test` is of this position."""
        return bool(self.test.get("epoch") == self.progress)


def write(path: Path, payload: bytes | memoryview, facts: Facts) -> None:
    """Writes a checkpoint so that at any moment `path` is the old file, or the new one, whole.

    OSError (no space left, for instance): nothing is left of the new one.
    """
    data = memoryview(payload)
    document = {
        **asdict(facts),
        "sha256": hashlib.sha256(data).hexdigest(),
        "nbytes": data.nbytes,
    }
    text = json.dumps(document).encode()
    write_whole(path, data, text, _FOOTER.pack(_MAGIC, _VERSION, len(text), zlib.crc32(text)))


def read_facts(path: Path) -> Facts:
    """The facts of a checkpoint, in a millisecond; whether the rest is whole, `read` sees.

    CheckpointError if it was cut, or never was a checkpoint; OSError if it cannot be opened.
    """
    with path.open("rb") as file:
        return _facts(path, file)


def read(path: Path) -> tuple[bytes, Facts]:
    """What was given to `write`, every byte checked; CheckpointError if one is not as written."""
    with path.open("rb") as file:
        facts = _facts(path, file)
        file.seek(0)
        payload = file.read(facts.nbytes)
    _compare(path, hashlib.sha256(payload).hexdigest(), facts)
    return payload, facts


def check(path: Path) -> None:
    """As `read`, without holding what the file holds."""
    with path.open("rb") as file:
        facts = _facts(path, file)
        file.seek(0)
        digest, left = hashlib.sha256(), facts.nbytes
        while left and (part := file.read(min(_PART, left))):
            digest.update(part)
            left -= len(part)
    _compare(path, digest.hexdigest(), facts)


class Checkpoints:
    """The checkpoints of one run directory, which one process at a time changes.

    `last.pt` and `best.pt` are links to two of them. `resumed` is the one that this process went on
    from, if any.
    """

    def __init__(self, run: Path) -> None:
        self.directory = run / "checkpoints"
        self.resumed: Path | None = None
        self._whole: dict[Path, bool] = {}  # what is known of the files, every byte considered

    def paths(self) -> list[Path]:
        """Every checkpoint of the run, whole or not, the one farthest in the run first."""
        named = (path for path in self.directory.glob("epoch_*") if _NAME.fullmatch(path.name))
        return sorted(named, key=_position, reverse=True)

    def usable(self, refused: list[str]) -> Iterator[tuple[Path, Facts]]:
        """Those that look whole, newest first; a line about each other one goes to `refused`."""
        return ((path, facts) for path in self.paths() if (facts := _looked_at(path, refused)))

    def add(
        self, payload: bytes | memoryview, facts: Facts, *, best: bool = False, keep: int = 0
    ) -> Path:
        """Writes one more, moves the links, and removes those that no longer need to be kept.

        Kept are this one and the newest whole one before it, the best, the one that this process
        went on from, and with `keep` the one at the end of every `keep`-th epoch. OSError if it
        cannot be written: all others are as before.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / facts.name
        self._whole.pop(path, None)
        write(path, payload, facts)
        self._whole[path] = True
        for link in ("last.pt", *(("best.pt",) if best else ())):
            self._link(link, path)
        self._remove_before(path, keep)
        return path

    def went_on_from(self, path: Path) -> None:
        """This process has read `path`, every byte of it, and has gone on from there."""
        self.resumed = path
        self._whole[path] = True

    def _remove_before(self, newest: Path, keep: int) -> None:
        """Removes files of before `newest`.

        One that is farther is damaged, or of a newer release: the run was resumed from before it.
        """
        spared, others = {self.best(), self.resumed}, _RECENT - 1
        for path in self.paths():
            epoch, image = position = _position(path)
            if position >= _position(newest):
                continue
            if others and self._is_whole(path):
                others -= 1
            elif path not in spared and not (keep and epoch and epoch % keep == 0 and image == 0):
                with contextlib.suppress(OSError):  # one too many does no harm
                    path.unlink()

    def _is_whole(self, path: Path) -> bool:
        if path not in self._whole:
            try:
                check(path)
                self._whole[path] = True
            except (CheckpointError, OSError):
                self._whole[path] = False
        return self._whole[path]

    def best(self) -> Path | None:
        """The one with the lowest test error, if there is one."""
        link = self.directory / "best.pt"
        return self.directory / link.readlink() if link.is_symlink() else None

    def set_aside(self, facts: Facts, name: str) -> Path | None:
        """Renames the one at the position of `facts`, which `usable` then no longer gives.

        None if there is no such one, or it is the best.
        """
        path, aside = self.directory / facts.name, self.directory / name
        if not path.exists() or path == self.best():
            return None
        path.rename(aside)
        for newest, _ in self.usable([]):
            self._link("last.pt", newest)
            break
        return aside

    def _link(self, name: str, target: Path) -> None:
        link = draft(self.directory / name)
        with contextlib.suppress(OSError):
            link.unlink()
        link.symlink_to(target.name)
        link.rename(self.directory / name)


def _looked_at(path: Path, refused: list[str]) -> Facts | None:
    try:
        return read_facts(path)
    except (CheckpointError, OSError) as error:
        refused.append(str(error))
        return None


def _position(path: Path) -> tuple[int, int]:
    match = _NAME.fullmatch(path.name)
    assert match, path
    epoch, image = match.groups()
    return int(epoch), int(image)


def _compare(path: Path, sha256: str, facts: Facts) -> None:
    if sha256 != facts.sha256:
        raise CheckpointError(f"{path}: damaged, its SHA-256 is not the one it was written with")


def _facts(path: Path, file: IO[bytes]) -> Facts:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _FOOTER.size))
    footer = file.read()
    if len(footer) < _FOOTER.size or not footer.startswith(_MAGIC):
        raise CheckpointError(f"{path}: no checkpoint of this trainer, or cut off at {size} bytes")
    _, version, length, crc = _FOOTER.unpack(footer)
    if version != _VERSION:
        raise CheckpointError(f"{path}: of format {chr(version)!a}; {_NEWER}")
    file.seek(max(0, size - _FOOTER.size - length))
    text = file.read(length)
    if zlib.crc32(text) != crc:
        raise CheckpointError(f"{path}: damaged, the checksum of its description is wrong")
    facts = _understood(path, json.loads(text))
    if facts.nbytes != size - _FOOTER.size - length:
        raise CheckpointError(f"{path}: damaged, {size} bytes long")
    return facts


def _understood(path: Path, document: dict[str, Any]) -> Facts:
    unknown = sorted(document.keys() - {field.name for field in fields(Facts)})
    if unknown:
        raise CheckpointError(f"{path}: says {', '.join(unknown)}; {_NEWER}")
    try:
        return Facts(**document)
    except TypeError:  # one that must be there is not
        raise CheckpointError(f"{path}: does not say all that this release needs") from None
