"""What a run of the suite found: counts, reasons of skips, failures; and runs beside each other."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .ranks import Result

_OUTCOMES = ("passed", "failed", "skipped")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The results of one backend and world size."""

    backend: str
    ranks: int
    nodes: int
    opened: bool  # gates that go by the backend's name were opened
    seconds: float
    results: tuple[Result, ...]

    def of(self, outcome: str) -> list[Result]:
        return [result for result in self.results if result.outcome == outcome]

    def names(self, outcome: str) -> set[str]:
        return {result.name for result in self.of(outcome)}

    def counts(self) -> list[int]:
        return [len(self.of(outcome)) for outcome in _OUTCOMES]

    def save(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @staticmethod
    def load(file: Path) -> Report:
        fields = json.loads(file.read_text())
        return Report(**{**fields, "results": tuple(Result(**r) for r in fields["results"])})


def text(report: Report) -> str:
    """Each failure with its message, skips by reason, each failure in a line, and counts."""
    lines = []
    for result in report.of("failed"):
        lines += [f"=== FAILED {result.name} ({result.seconds} s)", result.why]
    lines += ["skipped, by reason:"]
    lines += [f"{count:5} {why}" for why, count in skips(report).most_common()]
    lines += failures(report)
    counts = (f"{n} {outcome}" for n, outcome in zip(report.counts(), _OUTCOMES, strict=True))
    title = f"{report.backend}, {report.ranks} ranks"
    lines += [f"{title}: {', '.join(counts)} in {report.seconds:.0f} s"]
    return "\n".join(lines)


def skips(report: Report) -> Counter[str]:
    """How many tests were skipped for which reason."""
    reasons = (result.why for result in report.of("skipped"))
    return Counter("disabled by torch" if "github.com" in why else why for why in reasons)


def failures(report: Report) -> list[str]:
    """A line for each test that failed."""
    return [f"failed: {result.name}: {_cause(result)}" for result in report.of("failed")]


def _cause(result: Result) -> str:
    """The error that ended the first rank that failed, in one line."""
    first = result.why.split("\n--- rank")[0]
    errors = re.findall(r"^[\w.]*(?:Error|Exception|Timeout)\b.*", first, re.MULTILINE)
    return errors[-1] if errors else first.split("\n")[0].removeprefix("--- ")


def table(reports: Sequence[Report]) -> str:
    """A Markdown table with a row for each report."""
    lines = [
        "| backend | gates by name | ranks | nodes | passed | failed | skipped |",
        "|---|---|---|---|---|---|---|",
    ]
    for report in reports:
        gates = "opened" if report.opened else "as they are"
        cells = [report.backend, gates, report.ranks, report.nodes, *report.counts()]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)
