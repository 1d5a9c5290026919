"""Files of a run on a disk that may be full: whole or as before, and no failure ends the run."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

__all__ = ["GrowingFile", "draft", "draft_of", "write_whole"]

_DRAFT = re.compile(r"\.(.+)\.\d+")


def draft(path: Path) -> Path:
    """Where this process writes what is to become `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}")


def draft_of(name: str) -> str:
    """The name of the file that a draft was to become; nothing for another file."""
    match = _DRAFT.fullmatch(name)
    return match[1] if match else ""


def write_whole(path: Path, *parts: bytes | memoryview) -> None:
    """Writes a file so that at any moment `path` is the old one, or the new one, whole.

    OSError (no space left, for instance): nothing is left of the new one.
    """
    part = draft(path)
    try:
        with part.open("wb") as file:
            for data in parts:
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync_directory(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class GrowingFile:
    """A text file that begins with `begin`, and to which lines are added; a context manager.

    What an earlier file holds beyond `begin` is cut off. If the disk is full, `say` is told once,
    and what could not be written is kept and tried again with the next line: nothing is lost if
    there is room again before the run ends.
    """

    def __init__(self, path: Path, begin: str, say: Callable[[str], None]) -> None:
        self._path, self._begin, self._say = path, begin.encode(), say
        self._file: BinaryIO | None = None
        self._pending = b""
        self._failing = False
        self._flush()

    def add(self, text: str) -> None:
        """Appends text; it is in the file at once, or as soon as there is room."""
        self._pending += text.encode()
        self._flush()

    def __enter__(self) -> GrowingFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pending:
            self._flush()
        if self._pending:
            self._say(f"{self._path}: its last {len(self._pending)} bytes could not be written")
        if self._file is not None:
            self._file.close()

    def _flush(self) -> None:
        try:
            if self._file is None:
                self._file = self._open()
            while self._pending:
                done = self._file.write(self._pending)
                self._pending = self._pending[done:]
        except OSError as error:
            if not self._failing:
                self._say(
                    f"{self._path} cannot be written ({error.strerror}); training goes on, and "
                    "each line tries again"
                )
            self._failing = True
        else:
            self._failing = False

    def _open(self) -> BinaryIO:
        with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as undo:
            file = undo.enter_context(self._path.open("r+b", buffering=0))
            if file.read(len(self._begin)) == self._begin:
                file.truncate(len(self._begin))  # needs no room
                undo.pop_all()
                return file
        write_whole(self._path, self._begin)
        return self._path.open("ab", buffering=0)
