"""What a section finds, row by row: each is in a file before the next begins."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.place import Place

OK, FAILED, ABSENT = "ok", "failed", "absent"  # states of rows and, with the next two, of sections
IMPOSSIBLE, TIMED_OUT = "impossible", "timed out"


class Impossible(Exception):
    """A section cannot run here; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure, fact or verdict. `met`: whether the target was; None where there is none to meet.

    on: what it ran on; a GPU by its name alone.
    """

    name: str
    state: str
    on: str = ""
    value: float | None = None
    unit: str = ""
    target: str = ""
    met: bool | None = None
    note: str = ""


@dataclass(slots=True, kw_only=True)
class Section:
    """A section of the report. checks: its failure makes the whole check fail."""

    name: str
    checks: bool
    budget: float
    state: str = ""
    reason: str = ""
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)


class Rows:
    """Writes rows, one JSON object a line. quick: everything as small as it can be."""

    def __init__(self, file: Path, place: Place, quick: bool) -> None:
        self.place = place
        self.quick = quick
        self.failures = 0
        self._file = file.open("a")

    @property
    def small(self) -> bool:
        """Whether sizes are a CPU's."""
        return self.quick or self.place.gpu is None

    def add(self, name: str, value: float, unit: str, *, on: str, note: str = "") -> None:
        """A figure."""
        self._write(Row(name=name, state=OK, on=on, value=value, unit=unit, note=note))

    def judge(
        self,
        name: str,
        value: float,
        unit: str,
        *,
        on: str,
        at_least: float | None = None,
        at_most: float | None = None,
        note: str = "",
    ) -> None:
        """A figure that has a target on a GPU; elsewhere it is neither met nor missed."""
        sign, bound = (">=", at_least) if at_least is not None else ("<=", at_most)
        assert bound is not None
        met = value >= bound if sign == ">=" else value <= bound
        target = f"{sign} {bound:g} on a GPU"
        row = Row(name=name, state=OK, on=on, value=value, unit=unit, target=target, note=note)
        if on.startswith("GPU"):
            row = Row(**{**asdict(row), "met": met})
        self._write(row)

    def fact(self, name: str, text: str) -> None:
        """Something that was asked for, not measured."""
        self._write(Row(name=name, state=OK, note=text))

    def check(self, name: str, passed: bool, *, on: str, note: str = "") -> None:
        """A verdict."""
        self.failures += not passed
        self._write(Row(name=name, state=OK if passed else FAILED, on=on, note=note))

    def absent(self, name: str, why: str) -> None:
        """Something that could not be had here."""
        self._write(Row(name=name, state=ABSENT, note=why))

    def attempt(self, name: str, call: Callable[[], object], *, on: str) -> None:
        """Make a call whose own rows are in doubt: an exception is a check that failed."""
        try:
            call()
        except Exception as error:
            traceback.print_exc()
            self.check(name, False, on=on, note=f"{type(error).__name__}: {error}")

    def end(self, state: str, reason: str) -> None:
        """The section's own last word."""
        self._line({"end": state, "reason": reason})

    def _write(self, row: Row) -> None:
        if row.on.startswith("GPU") and row.on != self.place.on(""):
            raise AssertionError(f"{row.name}: labelled {row.on!r}, which is not where this runs")
        self._line(asdict(row))

    def _line(self, content: dict[str, Any]) -> None:
        self._file.write(json.dumps(content) + "\n")
        self._file.flush()


def read(file: Path, section: Section) -> None:
    """Take over what a section has written, its end as well if it came so far."""
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            content = json.loads(line)
        except json.JSONDecodeError:  # it was killed while it wrote
            continue
        if "end" in content:
            section.state, section.reason = content["end"], content["reason"]
        else:
            section.rows.append(Row(**content))
