"""What a run leaves behind (its directory) and what it says meanwhile."""

from __future__ import annotations

import contextlib
import csv
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from trainer.config_file import to_toml
from trainer.options import Config
from trainer.report import PHASES, table

if TYPE_CHECKING:
    from rich.progress import Progress

    from trainer.loop import Job

__all__ = ["Log", "RunLog", "environment", "open_log"]

_COLUMNS = (
    *("kind", "iteration", "epoch", "eta", "loss", "train_error", "images_per_second"),
    *(f"{phase}_seconds" for phase in PHASES),
    *("test_error", "test_loss", "test_images"),
)


class Log:
    """What a worker reports; this one, for all ranks but 0, keeps silent."""

    def tick(self, iteration: int) -> None:
        """`iteration` iterations are done."""

    def train(self, line: dict[str, Any]) -> None:
        """Training metrics of the last few iterations."""

    def test(self, line: dict[str, Any]) -> None:
        """Test metrics after an epoch."""

    def finish(self, summary: dict[str, Any]) -> None:
        """The run is complete."""


class RunLog(Log):
    """Writes the run directory and shows progress; a context manager.

    Files: config.toml, env.json, metrics.jsonl and metrics.csv (a line as soon as it is known),
    summary.json at the end. Progress is one live line on a terminal where rich is installed, and
    plain lines elsewhere.
    """

    def __init__(self, directory: Path, config: Config, *, last_iteration: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory, self._last_iteration = directory, last_iteration
        (directory / "config.toml").write_text(to_toml(config))
        (directory / "env.json").write_text(json.dumps(environment(), indent=2) + "\n")
        self._jsonl: IO[str] = (directory / "metrics.jsonl").open("w", buffering=1)
        self._csv: IO[str] = (directory / "metrics.csv").open("w", buffering=1, newline="")
        self._rows = csv.DictWriter(self._csv, _COLUMNS)
        self._rows.writeheader()
        self._live = _LiveLine.open(last_iteration)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_live()
        self._jsonl.close()
        self._csv.close()

    def say(self, text: str) -> None:
        """Prints a line; above the live one, if there is one."""
        if self._live:
            self._live.say(text)
        else:
            print(text, flush=True)

    def tick(self, iteration: int) -> None:
        """Moves the live line on."""
        if self._live:
            self._live.tick(iteration)

    def train(self, line: dict[str, Any]) -> None:
        """Writes one line of training metrics, and shows it."""
        self._record("train", line)
        words = (
            f"loss {line['loss']:.3f}  train error {line['train_error']:5.1%}  "
            f"{line['images_per_second']:,.0f} images/s"
        )
        if self._live:
            self._live.describe(words)
        else:
            position = f"iteration {line['iteration']:>4}/{self._last_iteration}"
            self.say(f"{position}  eta {line['eta']:.4f}  {words}")

    def test(self, line: dict[str, Any]) -> None:
        """Writes one line of test metrics, and prints it."""
        self._record("test", line)
        self.say(
            f"epoch {line['epoch']:.3g}: test error {line['test_error']:.1%}, "
            f"loss {line['test_loss']:.3f} on {line['test_images']} images"
        )

    def finish(self, summary: dict[str, Any]) -> None:
        """Writes summary.json and prints the end table."""
        (self._directory / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        self._close_live()
        print(f"\n{table(summary)}\nrun directory: {self._directory}", flush=True)

    def _record(self, kind: str, line: dict[str, Any]) -> None:
        row = {"kind": kind, **line}
        self._jsonl.write(json.dumps(row) + "\n")
        self._rows.writerow(row)

    def _close_live(self) -> None:
        if self._live:
            self._live.close()
            self._live = None


class _LiveLine:
    """One line of a terminal: a bar, the newest metrics, time left."""

    def __init__(self, progress: Progress, last_iteration: int) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=last_iteration)
        progress.start()

    @classmethod
    def open(cls, last_iteration: int) -> _LiveLine | None:
        """None where output is not a terminal, or rich is not installed."""
        if not sys.stdout.isatty():
            return None
        try:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
            from rich.progress import TimeRemainingColumn as TimeLeft
        except ImportError:
            return None
        columns = (BarColumn(12), MofNCompleteColumn(), TextColumn("{task.description}"))
        progress = Progress(*columns, TextColumn("left"), TimeLeft(), transient=True)
        return cls(progress, last_iteration)

    def tick(self, iteration: int) -> None:
        self._progress.update(self._task, completed=iteration)

    def describe(self, words: str) -> None:
        self._progress.update(self._task, description=words)

    def say(self, text: str) -> None:
        self._progress.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._progress.stop()


@contextlib.contextmanager
def open_log(job: Job) -> Iterator[Log]:
    """The log of this worker: on rank 0 one that opens by saying what runs, elsewhere silence."""
    if job.comm.rank != 0:
        yield Log()
        return
    config, info = job.config, job.dataset.info
    directory = Path(config.out or f"runs/{time.strftime('%Y-%m-%d_%H-%M-%S')}")
    with RunLog(directory, config, last_iteration=job.last_iteration) as log:
        values = sum(p.numel() for p in job.model.module.parameters())
        cap = config.bucket_bytes
        buckets = f"buckets of {cap if cap == 'auto' else f'{cap:,} B'}" if cap else "per tensor"
        log.say(
            f"{config.model}, {values:,} parameters, on {config.data}: "
            f"{info.train_images} training and {info.test_images} test images\n"
            f"{_workers(config)} on {job.comm.num_nodes} nodes, n = {config.batch}, "
            f"kn = {config.minibatch}, {job.last_iteration} iterations, {job.schedule}\n"
            f"allreduce: {config.algo}, {buckets}; run directory: {directory}"
        )
        yield log


def _workers(config: Config) -> str:
    if config.workers_virtual == 1:
        return f"{config.workers} workers"
    return f"{config.workers} workers, {config.workers_virtual} in each process,"


def environment() -> dict[str, Any]:
    """Versions, machine and commit: what one needs to understand the run's numbers."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "numpy", "hier-allreduce")},
        "commit": _commit(),
        "kernel": platform.release(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg(),
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the source tree that this file lies in, "+changes" if it was edited since."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=10
        ).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return commit + ("+changes" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
