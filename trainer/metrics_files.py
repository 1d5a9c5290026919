"""metrics.jsonl and metrics.csv: a line as soon as it is known, none lost or twice on resuming."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from trainer.report import PHASES

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
    are taken out first.
    """

    def __init__(self, directory: Path, *, progress: float | None = None) -> None:
        files = [directory / "metrics.jsonl", directory / "metrics.csv"]
        drafts = [directory / f".{file.name}" for file in files]
        before = [] if progress is None else lines_of(files[0])
        self._jsonl = drafts[0].open("w", buffering=1)
        self._csv = drafts[1].open("w", buffering=1, newline="")
        self._rows = csv.DictWriter(self._csv, _COLUMNS, extrasaction="ignore")
        self._rows.writeheader()
        for line in before:
            if line["epoch"] <= (progress or 0.0) + _NEAR:
                self.record(line)
        for draft, file in zip(drafts, files, strict=True):
            draft.rename(file)

    def record(self, line: Mapping[str, Any]) -> None:
        """Writes one line, which has a "kind"."""
        self._jsonl.write(json.dumps(line) + "\n")
        self._rows.writerow(line)

    def __enter__(self) -> MetricsFiles:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._jsonl.close()
        self._csv.close()
