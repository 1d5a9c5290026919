"""Runs as `trainer.report` sees them: their metrics, final errors, and how they scale."""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.options import Config
from trainer.output.metrics_files import lines_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "NoRun",
    "Run",
    "by_seed",
    "final_error",
    "has_median",
    "read_run",
    "scaling",
]

_LAST = 5  # epochs whose median is the final error (section 5.1)
_LONG = 20  # epochs: in a shorter run the last five are not of one learning rate
# Options of the place, of output and of safety: they change neither what is trained nor how fast.
_ASIDE = {
    *("seed", "out", "log", "log_every", "save_every", "keep", "resume", "profile", "timeout"),
    *("master", "machine", "check_replicas", "traceback"),
}
_SIZE = {"workers", "nodes", "machines"}  # more workers come on more nodes


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
    except (OSError, ValueError) as error:
        raise NoRun(f"{directory}: not a run directory ({error})") from None
    train = [line for line in lines if line["kind"] == "train"]
    if not train:
        raise NoRun(f"{directory}: nothing was trained yet, it has no metrics")
    test = [line for line in lines if line["kind"] == "test"]
    summary = _summary(directory / "summary.json")
    return Run(name=directory.name, options=options, train=train, test=test, summary=summary)


def _summary(path: Path) -> dict[str, Any] | None:
    """None if the run did not come to its end, or its disk was full there."""
    try:
        summary = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) and "images_per_second" in summary else None


def has_median(run: Run) -> bool:
    """Whether the run is long enough for the paper's final error: at least 20 epochs."""
    return len(run.test) >= _LAST and float(run.test[-1]["epoch"]) >= _LONG


def final_error(run: Run) -> float | None:
    """The test error as in the paper, the median of the last 5 epochs; of a short run the last."""
    errors = [line["test_error"] for line in run.test]
    if not errors:
        return None
    return float(statistics.median(errors[-_LAST:]) if has_median(run) else errors[-1])


def by_seed(runs: Sequence[Run]) -> list[tuple[str, list[float]]]:
    """Final errors of runs that differ in nothing but their seed, with what sets each group apart.

    Options of the place and of output do not count.
    """
    groups = []
    for name, members in _alike(runs, _ASIDE):
        errors = [error for run in members if (error := final_error(run)) is not None]
        groups.append((name, errors))
    return groups


Scaling = list[tuple[int, float, float]]


def scaling(runs: Sequence[Run]) -> list[tuple[str, Scaling]]:
    """How each group of runs that differ in their workers alone scales; what sets it apart.

    Rows are workers, images per second (the median where several runs have as many), and
    efficiency: images per second and worker, against those of the fewest workers. A group of one
    number of workers is left out.
    """
    found = []
    for name, members in _alike(runs, _ASIDE | _SIZE):
        rates: dict[int, list[float]] = {}
        for run in members:
            rates.setdefault(run.workers, []).append(run.images_per_second)
        medians = {k: statistics.median(each) for k, each in sorted(rates.items())}
        base = next(iter(medians))
        each = medians[base] / base
        if len(medians) > 1:
            found.append((name, [(k, rate, rate / k / each) for k, rate in medians.items()]))
    return found


def _alike(runs: Sequence[Run], ignored: set[str]) -> list[tuple[str, list[Run]]]:
    """Groups of runs with equal options but for `ignored`, and what sets each group apart."""
    usual = {field.name: field.default for field in dataclasses.fields(Config)}
    kinds: dict[str, list[Run]] = {}
    for run in runs:
        options = {**usual, **run.options}  # an older run does not name what came later
        key = {k: v for k, v in sorted(options.items()) if k not in ignored}
        kinds.setdefault(json.dumps(key), []).append(run)
    keys = [json.loads(key) for key in kinds]
    names = sorted({k for key in keys for k in key})
    varying = [k for k in names if len({json.dumps(key.get(k)) for key in keys}) > 1]
    return [
        (", ".join(f"{k} {key.get(k, 'default')}" for k in varying) or "all runs", members)
        for key, members in zip(keys, kinds.values(), strict=True)
    ]
