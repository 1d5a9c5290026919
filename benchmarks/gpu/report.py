"""The report of a check: JSON, and a table for the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.gpu.place import Place
from benchmarks.gpu.rows import ABSENT, FAILED, OK, TIMED_OUT, Row, Section

SCHEMA = 1


def exit_status(sections: Sequence[Section]) -> int:
    """1 if a section of checks failed or did not end, or any check anywhere failed."""
    wrong = any(row.state == FAILED for section in sections for row in section.rows)
    return int(wrong or any(s.checks and s.state in (FAILED, TIMED_OUT) for s in sections))


def write(file: Path, place: Place, sections: Sequence[Section], *, when: str, commit: str) -> None:
    """Write all that is known so far; a later call replaces it."""
    for row in (row for section in sections for row in section.rows):
        if row.on.startswith("GPU") and place.gpu is None:
            raise AssertionError(f"{row.name} is said to have run on {row.on!r}: there is none")
    content = {
        "schema": SCHEMA,
        "when": when,
        "commit": commit,
        "gpu": place.gpu,
        "why_no_gpu": place.why,
        "exit_status": exit_status(sections),
        "sections": [asdict(section) for section in sections],
    }
    part = file.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(file)


def lines(section: Section) -> Iterator[str]:
    """Yield a section's part of the table."""
    state = section.state + (f": {section.reason}" if section.reason else "")
    yield ""
    yield f"{section.name.upper()} ({section.seconds:.1f} of {section.budget:.0f} s): {state}"
    width = max((len(row.name) for row in section.rows), default=0)
    for row in section.rows:
        yield f"  {row.name:<{width}}  {_value(row)}"


def _value(row: Row) -> str:
    if row.state == ABSENT:
        return f"absent: {row.note}"
    if row.value is None and not row.on:
        return row.note
    parts = [f"{_number(row.value)} {row.unit}" if row.value is not None else row.state.upper()]
    if row.target:
        verdict = {True: ": met", False: ": MISSED", None: ""}[row.met]
        parts.append(f"({row.target}{verdict})")
    parts += [f"[{row.on}]", row.note]
    return "  ".join(part for part in parts if part)


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def summary(place: Place, sections: Sequence[Section]) -> Iterator[str]:
    """Yield the last lines: what ran where, what failed, targets."""
    where = f"on {place.gpu}" if place.gpu else f"on no GPU ({place.why})"
    good = sum(section.state == OK for section in sections)
    rows = [row for section in sections for row in section.rows]
    yield ""
    yield f"{good} of {len(sections)} sections ran to their end, {where}"
    yield from (f"  {s.name}: {s.state}: {s.reason}" for s in sections if s.state != OK)
    yield from (f"  FAILED {row.name}: {row.note}" for row in rows if row.state == FAILED)
    judged = [row for row in rows if row.met is not None]
    if judged:
        yield f"{sum(bool(row.met) for row in judged)} of {len(judged)} targets met"
