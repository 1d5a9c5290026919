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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

__all__ = ["CheckpointError", "Checkpoints", "Facts", "read", "read_facts", "write"]

_FOOTER = struct.Struct("<8sII")  # magic, length and CRC-32 of the JSON before it
_MAGIC = b"hierCkp1"
_NAME = re.compile(r"epoch_(\d+)_image_(\d+)\.pt")
_RECENT = 2  # the newest, and one before it should that one be damaged


class CheckpointError(ValueError):
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
        """The file's name; names in order are positions in order."""
        return f"epoch_{self.epoch:04d}_image_{self.offset:09d}.pt"


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
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            for part in (data, text, _FOOTER.pack(_MAGIC, len(text), zlib.crc32(text))):
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
        _sync_directory(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


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
    if hashlib.sha256(payload).hexdigest() != facts.sha256:
        raise CheckpointError(f"{path}: damaged, its SHA-256 is not the one it was written with")
    return payload, facts


class Checkpoints:
    """The checkpoints of one run directory.

    `last.pt` and `best.pt` are links to two of them.
    """

    def __init__(self, run: Path) -> None:
        self.directory = run / "checkpoints"

    def paths(self) -> list[Path]:
        """Every checkpoint of the run, whole or not, newest first."""
        return sorted(self.directory.glob("epoch_*_image_*.pt"), reverse=True)

    def usable(self, refused: list[str]) -> Iterator[tuple[Path, Facts]]:
        """Those that look whole, newest first; a line about each other one goes to `refused`."""
        return ((path, facts) for path in self.paths() if (facts := _looked_at(path, refused)))

    def add(
        self, payload: bytes | memoryview, facts: Facts, *, best: bool = False, keep: int = 0
    ) -> Path:
        """Writes one more, moves the links, and removes those that no longer need to be kept.

        Kept are the newest two, the best, and with `keep` the one at the end of every `keep`-th
        epoch. OSError if it cannot be written: all others are as before.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / facts.name
        write(path, payload, facts)
        for link in ("last.pt", *(("best.pt",) if best else ())):
            self._link(link, path)
        best_path = self.best()
        for old in self.paths()[_RECENT:]:
            match = _NAME.fullmatch(old.name)
            epoch, image = (int(number) for number in match.groups()) if match else (0, 0)
            if old != best_path and not (keep and epoch and epoch % keep == 0 and image == 0):
                old.unlink()
        return path

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
        for newest in self.paths()[:1]:
            self._link("last.pt", newest)
        return aside

    def _link(self, name: str, target: Path) -> None:
        draft = self.directory / f".{name}.{os.getpid()}"
        with contextlib.suppress(OSError):
            draft.unlink()
        draft.symlink_to(target.name)
        draft.rename(self.directory / name)


def _looked_at(path: Path, refused: list[str]) -> Facts | None:
    try:
        return read_facts(path)
    except (CheckpointError, OSError) as error:
        refused.append(str(error))
        return None


def _facts(path: Path, file: IO[bytes]) -> Facts:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _FOOTER.size))
    footer = file.read()
    if len(footer) < _FOOTER.size or footer[:8] != _MAGIC:
        raise CheckpointError(f"{path}: no checkpoint of this trainer, or cut off at {size} bytes")
    _, length, crc = _FOOTER.unpack(footer)
    file.seek(max(0, size - _FOOTER.size - length))
    text = file.read(length)
    if zlib.crc32(text) != crc:
        raise CheckpointError(f"{path}: damaged, the checksum of its description is wrong")
    facts = Facts(**json.loads(text))
    if facts.nbytes != size - _FOOTER.size - length:
        raise CheckpointError(f"{path}: damaged, {size} bytes long")
    return facts


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
