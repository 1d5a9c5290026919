"""Tuning files: TOML that `python -m allreduce.tune` writes and `init(tuning=)` reads.

The format is in docs/tuning.md. Whatever is wrong with a file is one UsageError that names the
file, the key and what to do.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from allreduce import _C
from allreduce.errors import UsageError
from allreduce.schedules import algorithms
from allreduce.tuning import LOCAL_STAGE_ALONE, Choice, LayoutTuning, Points, Tuning
from allreduce.tuning.cost import LOCAL_STAGE, NETWORK, SHARED_MEMORY, Link

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["read", "text"]

_FORMAT = 1
_AGAIN = "write it anew with python -m allreduce.tune"
_KINDS = (LOCAL_STAGE, NETWORK, SHARED_MEMORY)
_LOCAL_FORMS = ("rs_ag", "reduce_bcast", "none")
_OPTIONS = {"lanes": 1, "rails": 0, "segment_bytes": 64}  # and their least values
_SIZE_MAX = 16 << 20  # bytes; no tuning file is that large


def read(path: str | os.PathLike[str]) -> Tuning:
    """Return what a file says. UsageError if it cannot be read, or is no tuning file."""
    try:
        data = Path(path).read_bytes()[: _SIZE_MAX + 1]
    except OSError as error:
        raise UsageError(
            f"tuning file {path}: {error.strerror}; name one that python -m allreduce.tune has "
            "written, or leave tuning (ALLREDUCE_TUNING) out"
        ) from None
    if len(data) > _SIZE_MAX:
        raise UsageError(f"tuning file {path}: larger than {_SIZE_MAX} B; {_AGAIN}")
    try:
        root = _Table(str(path), "", tomllib.loads(data.decode()))
    except ValueError as error:  # TOML's, or UTF-8's
        raise UsageError(f"tuning file {path} is no TOML: {error}; {_AGAIN}") from None
    if "format" not in root.values:
        root.refuse("format", "is missing: this is no tuning file")
    if root.integer("format") != _FORMAT:
        root.refuse("format", f"is {root.values['format']}, and this release reads {_FORMAT}")
    made = root.words("made")
    root.only("format", "made", "links", "layout")
    links = root.table("links")
    links.only(*_KINDS)
    return Tuning(
        links={kind: _link(links.table(kind)) for kind in links.values},
        layouts=tuple(_layout(table) for table in root.tables("layout")),
        source=f"file {path} ({made})",
        digest=hashlib.sha256(data).hexdigest()[:16],
    )


def text(tuning: Tuning, made: str) -> str:
    """Return a tuning as TOML. `made` says when, where and by what it was measured."""
    return "\n".join(_lines(tuning, made)) + "\n"


class _Table:
    """A table of the file, with errors that name the file and the key."""

    def __init__(self, path: str, name: str, values: Mapping[str, Any]) -> None:
        self._path, self._name, self.values = path, name, values

    def refuse(self, key: str, problem: str) -> NoReturn:
        where = f"{self._name}.{key}" if self._name else key
        raise UsageError(f"tuning file {self._path}: {where} {problem}; {_AGAIN}")

    def only(self, *known: str) -> None:
        for key in self.values:
            if key not in known:
                self.refuse(key, f"is no key; there are {', '.join(known)}")

    def get(self, key: str, kind: type, words: str) -> Any:
        value = self.values.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            self.refuse(key, f"must be {words}" if key in self.values else f"is missing: {words}")
        return value

    def integer(self, key: str, least: int = 1) -> int:
        value: int = self.get(key, int, "an integer")
        if value < least:
            self.refuse(key, f"is {value}; it must be {least} or more")
        return value

    def seconds(self, key: str) -> float:
        return self._seconds(key, self.values.get(key))

    def words(self, key: str, choices: Collection[str] = ()) -> str:
        value: str = self.get(key, str, "a string")
        if choices and value not in choices:
            self.refuse(key, f"is {value!r}; it must be one of {', '.join(choices)}")
        return value

    def table(self, key: str) -> _Table:
        return self._table(key, self.get(key, dict, "a table"))

    def tables(self, key: str) -> list[_Table]:
        rows = self.get(key, list, "an array of tables")
        for number, row in enumerate(rows):
            if not isinstance(row, dict):
                self.refuse(f"{key}[{number}]", "must be a table")
        return [self._table(f"{key}[{number}]", row) for number, row in enumerate(rows)]

    def integers(self, key: str) -> tuple[int, ...]:
        values = self.get(key, list, "a list of integers")
        if not values or any(type(v) is not int or v < 1 for v in values):
            self.refuse(key, "must be a list of integers above 0")
        return tuple(values)

    def points(self, key: str) -> Points:
        rows = self.get(key, list, "a list of [bytes, seconds]")
        points = []
        for row in rows:
            if not isinstance(row, list) or len(row) != 2 or type(row[0]) is not int:
                self.refuse(key, "must be a list of [bytes, seconds]")
            points.append((row[0], self._seconds(key, row[1])))
        sizes = [size for size, _ in points]
        if sizes != sorted(set(sizes)) or sizes[:1] < [1]:
            self.refuse(key, "must have one or more ascending sizes above 0")
        return tuple(points)

    def _table(self, key: str, values: Mapping[str, Any]) -> _Table:
        return _Table(self._path, f"{self._name}.{key}" if self._name else key, values)

    def _seconds(self, key: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.refuse(key, "must be a number of seconds")
        if not 0 <= value < math.inf:
            self.refuse(key, f"is {value}; it must be 0 or more")
        return float(value)


def _link(table: _Table) -> Link:
    table.only("alpha", "overhead", "beta", "gamma")
    overhead = table.seconds("overhead") if "overhead" in table.values else None
    return Link(table.seconds("alpha"), table.seconds("beta"), table.seconds("gamma"), overhead)


def _layout(table: _Table) -> LayoutTuning:
    table.only("nodes", "local", *_OPTIONS, "choices", "times")
    options = {
        name: table.integer(name, least) for name, least in _OPTIONS.items() if name in table.values
    }
    choices, times = table.table("choices"), table.table("times")
    choices.only(*_C.Collective.__members__)
    times.only(*_C.Collective.__members__)
    return LayoutTuning(
        nodes=table.integers("nodes"),
        local=table.words("local", _LOCAL_FORMS),
        choices={name: _choices(choices, name) for name in choices.values},
        times={name: _times(times.table(name), name) for name in times.values},
        **options,
    )


def _choices(table: _Table, collective: str) -> tuple[Choice, ...]:
    rows = table.tables(collective)
    known = algorithms(collective)
    found: list[Choice] = []
    for row in rows:
        row.only("up_to", "algorithm")
        up_to = row.integer("up_to") if "up_to" in row.values else None
        found.append(Choice(up_to, row.words("algorithm", known)))
    limits = [choice.up_to for choice in found]
    if not limits or limits[-1] is not None or None in limits[:-1]:
        table.refuse(collective, "must have rows of which the last, and it alone, has no up_to")
    finite = [limit for limit in limits if limit is not None]
    if finite != sorted(set(finite)):
        table.refuse(collective, "must have rows by ascending up_to")
    return tuple(found)


def _times(table: _Table, collective: str) -> dict[str, Points]:
    table.only(*algorithms(collective), LOCAL_STAGE_ALONE)
    return {name: table.points(name) for name in table.values}


def _lines(tuning: Tuning, made: str) -> Iterator[str]:
    yield "# Written by python -m allreduce.tune; see docs/tuning.md."
    yield f"format = {_FORMAT}"
    yield f"made = {json.dumps(made)}"
    if not tuning.links:
        yield "\n[links]"
    for kind, link in tuning.links.items():
        yield f"\n[links.{kind}]"
        yield f"alpha = {link.alpha!r}  # seconds a message"
        if link.overhead is not None:
            yield f"overhead = {link.overhead!r}  # seconds a further message of a round"
        yield f"beta = {link.beta!r}  # seconds a byte"
        yield f"gamma = {link.gamma!r}  # seconds a byte reduced"
    for tuned in tuning.layouts:
        yield "\n[[layout]]"
        yield f"nodes = {list(tuned.nodes)}  # ranks of each node"
        yield f"local = {json.dumps(tuned.local)}"
        for name in _OPTIONS:
            value = getattr(tuned, name)
            if value is not None:
                yield f"{name} = {value}"
        yield "\n[layout.choices]  # by size in bytes, the first row that fits"
        for collective, rows in tuned.choices.items():
            yield f"{collective} = ["
            for row in rows:
                limit = "" if row.up_to is None else f"up_to = {row.up_to}, "
                yield f"  {{ {limit}algorithm = {json.dumps(row.algorithm)} }},"
            yield "]"
        yield "\n[layout.times]  # [bytes, seconds]"
        for collective, times in tuned.times.items():
            yield f"\n[layout.times.{collective}]"
            for name, points in times.items():
                values = ", ".join(f"[{nbytes}, {seconds!r}]" for nbytes, seconds in points)
                yield f"{json.dumps(name)} = [{values}]"
