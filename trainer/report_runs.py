"""Runs as `trainer.report` sees them: their metrics, final errors, and how they scale."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.metrics_files import lines_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["NoRun", "Run", "by_seed", "final_error", "read_run", "scaling"]

_LAST = 5  # epochs whose median is the final error (section 5.1)


class NoRun(ValueError):
    """A directory that is no run; one line that names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run directory: its options, its lines of metrics, and its summary once it is complete."""

    name: str
    options: dict[str, Any]
    train: list[dict[str, Any]]
    test: list[dict[str, Any]]
    summary: dict[str, Any] | None

    @property
    def workers(self) -> int:
        """k, the workers of the job."""
        return int(self.options.get("workers", 1))

    @property
    def images_per_second(self) -> float:
        """Of the whole run, or the median of its lines if it is not complete."""
        if self.summary:
            return float(self.summary["images_per_second"])
        return float(statistics.median(line["images_per_second"] for line in self.train))


def read_run(directory: Path) -> Run:
    """Reads a run directory, complete or not; NoRun if it is none or has trained nothing."""
    try:
        lines = lines_of(directory / "metrics.jsonl")
        options = tomllib.loads((directory / "config.toml").read_text())
        summary_file = directory / "summary.json"
        summary = json.loads(summary_file.read_text()) if summary_file.exists() else None
    except (OSError, ValueError) as error:
        raise NoRun(f"{directory}: not a run directory ({error})") from None
    train = [line for line in lines if line["kind"] == "train"]
    if not train:
        raise NoRun(f"{directory}: nothing was trained yet, it has no metrics")
    test = [line for line in lines if line["kind"] == "test"]
    return Run(name=directory.name, options=options, train=train, test=test, summary=summary)


def final_error(run: Run) -> float | None:
    """The test error as in the paper: the median of the last 5 epochs, or of all if fewer."""
    errors = [line["test_error"] for line in run.test[-_LAST:]]
    return statistics.median(errors) if errors else None


def by_seed(runs: Sequence[Run]) -> list[tuple[str, list[float]]]:
    """Final errors of runs that differ in nothing but their seed, with what sets each group apart.

    Options of the place and of output do not count.
    """
    ignored = {"seed", "out", "log", "log_every", "save_every", "keep", "resume", "profile"}
    kinds: dict[str, list[Run]] = {}
    for run in runs:
        key = {k: v for k, v in sorted(run.options.items()) if k not in ignored}
        kinds.setdefault(json.dumps(key), []).append(run)
    keys = [json.loads(key) for key in kinds]
    names = sorted({k for key in keys for k in key})
    varying = [k for k in names if len({json.dumps(key.get(k)) for key in keys}) > 1]
    groups = []
    for key, members in zip(keys, kinds.values(), strict=True):
        name = ", ".join(f"{k} {key.get(k, 'default')}" for k in varying) or "all runs"
        errors = [error for run in members if (error := final_error(run)) is not None]
        groups.append((name, errors))
    return groups


def scaling(runs: Sequence[Run]) -> list[tuple[int, float, float]]:
    """Workers, images per second (the median where several runs have as many), and efficiency.

    The efficiency is images per second and worker, against those of the fewest workers.
    """
    rates: dict[int, list[float]] = {}
    for run in runs:
        rates.setdefault(run.workers, []).append(run.images_per_second)
    medians = {k: statistics.median(each) for k, each in sorted(rates.items())}
    base = next(iter(medians))
    each = medians[base] / base
    return [(k, rate, rate / k / each) for k, rate in medians.items()]
