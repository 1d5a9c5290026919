"""metrics.jsonl and metrics.csv: a line as soon as it is known, none lost or twice on resuming."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trainer.output.end_table import PHASES
from trainer.output.files import GrowingFile

__all__ = ["MetricsFiles", "lines_of"]

_COLUMNS = (
    *("kind", "iteration", "epoch", "eta", "loss", "train_error", "skipped"),
    *("images_per_second", "step_p50_seconds", "step_p90_seconds"),
    *(f"{phase}_seconds" for phase in PHASES),
    *("test_error", "test_loss", "test_images", "average_error"),
)
_NEAR = 1e-9  # epochs: below any iteration, above rounding


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; the last one is left out if a killed run cut it off."""
    whole = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in whole]


class MetricsFiles:
    """Both files of a run directory; a context manager.

    A resumed run goes on from epoch `progress`: lines of later iterations, which are done again,
    are taken out first, and the line of the test there, unless it was `tested`. What cannot be
    written, `say` is told (see `files.GrowingFile`).
    """

    def __init__(
        self,
        directory: Path,
        *,
        progress: float | None = None,
        tested: bool = True,
        say: Callable[[str], None] = print,
    ) -> None:
        path = directory / "metrics.jsonl"
        before = [] if progress is None else lines_of(path)
        end = progress or 0.0
        kept = [line for line in before if line["epoch"] <= end + _NEAR]
        tests = [line for line in kept if line["kind"] == "test" and line["epoch"] > end - _NEAR]
        if not tested:
            kept = [line for line in kept if line not in tests]
        self.has_last_test = bool(tests) and tested
        head = _row(dict(zip(_COLUMNS, _COLUMNS, strict=True)))
        self._jsonl = GrowingFile(path, "".join(map(_line, kept)), say)
        self._csv = GrowingFile(directory / "metrics.csv", head + "".join(map(_row, kept)), say)

    def record(self, line: Mapping[str, Any]) -> None:
        """Writes one line, which has a "kind"."""
        self._jsonl.add(_line(line))
        self._csv.add(_row(line))

    def __enter__(self) -> MetricsFiles:
        return self

    def __exit__(self, *error: object) -> None:
        self._jsonl.__exit__(*error)
        self._csv.__exit__(*error)


def _line(line: Mapping[str, Any]) -> str:
    return json.dumps(line) + "\n"


def _row(line: Mapping[str, Any]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, _COLUMNS, extrasaction="ignore").writerow(line)
    return text.getvalue()
