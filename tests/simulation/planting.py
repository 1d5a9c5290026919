"""Planted faults: a text that is once in a source file, and what takes its place."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Mutant(NamedTuple):
    name: str
    file: str
    old: str
    new: str


def planted(mutant: Mutant, folder: Path) -> str:
    """The text of the file, which lies in `folder`, with the fault in it."""
    text = (folder / mutant.file).read_text()
    assert text.count(mutant.old) == 1, f"{mutant.file}: {mutant.old!r} is not there once"
    return text.replace(mutant.old, mutant.new)
