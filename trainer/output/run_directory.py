"""What a run leaves behind (its directory) and what it says meanwhile."""

from __future__ import annotations

import contextlib
import errno
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config.files import to_toml
from trainer.config.options import Config
from trainer.output.end_table import counted, table
from trainer.output.environment import environment
from trainer.output.files import write_whole
from trainer.output.loggers import open_sinks
from trainer.output.metrics_files import MetricsFiles

if TYPE_CHECKING:
    from rich.progress import Progress

    from trainer.checkpoint.file import Facts
    from trainer.checkpoint.restore import Restart
    from trainer.training.run_state import Job

__all__ = ["Log", "RunLog", "open_log"]


class Log:
    """What a worker reports; this one, for all ranks but 0, keeps silent."""

    def say(self, text: str) -> None:
        """A line for whoever watches."""

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
    plain lines elsewhere. A run resumed from `before` goes on in the same files.
    """

    def __init__(
        self, directory: Path, config: Config, *, last_iteration: int, before: Facts | None = None
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory, self._last_iteration = directory, last_iteration
        self._live: _LiveLine | None = None
        self._write("config.toml", to_toml(config))
        self._write("env.json", _environment(directory / "env.json", resumed=before is not None))
        progress = before.progress if before else None
        tested = before is None or before.tested
        self._files = MetricsFiles(directory, progress=progress, tested=tested, say=self.say)
        first = before.iteration if before else None
        self._sinks = open_sinks(config.log, directory, asdict(config), first=first)
        self._live = _LiveLine.open(last_iteration)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_live()
        self._files.__exit__(None, None, None)
        for sink in self._sinks:
            sink.close()

    def say(self, text: str) -> None:
        """Prints a line; above the live one, if there is one."""
        if self._live:
            self._live.say(text)
        else:
            _print(text)

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
            self.say(f"{position}  lr {line['eta']:.4f}  {words}")

    @property
    def has_last_test(self) -> bool:
        """Whether the files have the line of the test where the run was resumed."""
        return self._files.has_last_test

    def test(self, line: dict[str, Any]) -> None:
        """Writes one line of test metrics, and prints it."""
        self._record("test", line)
        self.say(
            f"epoch {line['epoch']:.3g}: test error {line['test_error']:.1%}, "
            f"loss {line['test_loss']:.3f} on {line['test_images']} images"
            + (f"; average {line['average_error']:.1%}" if "average_error" in line else "")
        )

    def finish(self, summary: dict[str, Any]) -> None:
        """Prints the end table, and then writes summary.json."""
        self._close_live()
        _print(f"\n{table(summary)}\nrun directory: {self._directory}")
        self._write("summary.json", json.dumps(summary, indent=2) + "\n")

    def _record(self, kind: str, line: dict[str, Any]) -> None:
        self._files.record({"kind": kind, **line})
        for sink in list(self._sinks):
            try:
                sink.record(kind, line)
            except OSError as error:  # noqa: PERF203 - there are two at most
                self._sinks.remove(sink)
                self.say(f"--log {sink.name}: cannot be written ({error.strerror}); it ends here")

    def _write(self, name: str, text: str) -> None:
        path = self._directory / name
        try:
            write_whole(path, text.encode())
        except OSError as error:
            self.say(f"{path} could not be written ({error.strerror})")

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
def open_log(job: Job, directory: Path, restart: Restart | None) -> Iterator[Log]:
    """The log of this worker: on rank 0 one that opens by saying what runs, elsewhere silence."""
    if job.comm.rank != 0:
        yield Log()
        return
    config, info = job.config, job.dataset.info
    before = restart.facts if restart else None
    with RunLog(directory, config, last_iteration=job.last_iteration, before=before) as log:
        if restart and restart.same_job:
            log.say(restart.words)
            if restart.facts.tested and not log.has_last_test:
                log.test(restart.facts.test)  # rank 0 died before it could
            yield log
            return
        values = sum(p.numel() for p in job.model.module.parameters())
        cap = config.bucket_bytes
        buckets = f"buckets of {cap if cap == 'auto' else f'{cap:,} B'}" if cap else "per tensor"
        buckets += f", sent as {config.wire_dtype}" if config.wire_dtype != "f32" else ""
        log.say(
            f"{config.model}, {values:,} parameters, on {config.data}: "
            f"{info.train_images} training and {info.test_images} test images\n"
            f"{_workers(config)} on {counted(job.comm.num_nodes, 'node')}, n = {config.batch}, "
            f"kn = {config.minibatch}, {job.last_iteration} iterations, {job.schedule}\n"
            f"{job.precision}; allreduce: {config.algo}, {buckets}; run directory: {directory}"
        )
        if info.note:
            log.say(f"note: {info.note}")
        if restart:
            log.say(restart.words)
        yield log


def _workers(config: Config) -> str:
    if config.workers_virtual == 1:
        return counted(config.workers, "worker")
    return f"{config.workers} workers, {config.workers_virtual} in each process,"


def _environment(path: Path, *, resumed: bool) -> str:
    """Each start of a run has its environment; the newest is at the top."""
    earlier = None
    if resumed:
        with contextlib.suppress(OSError, ValueError):  # lost on a full disk, for instance
            earlier = json.loads(path.read_text())
    starts = {**environment(), **({"resumed after": earlier} if earlier else {})}
    return json.dumps(starts, indent=2) + "\n"


def _print(text: str) -> None:
    """Prints; where it goes to a file on a full disk, the run does without."""
    try:
        print(text, flush=True)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
