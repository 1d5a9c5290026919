"""The paper's main finding at a small scale: error against minibatch (Figure 1), and its ablations.

    python -m benchmarks.large_minibatch --out DIR [--jobs 2] [--seeds 0,1,2]
    python -m benchmarks.large_minibatch --gpu --out DIR [--only 256,1024] [-- --precision=f32]
    python -m benchmarks.large_minibatch --report DIR --save benchmarks/results/NAME

Trains a small ResNet on Fashion-MNIST with minibatches of 64 to 4,096, in groups of n = 32 with
their own batch normalisation, by the trainer's own command. Rows go to DIR/rows.json as runs
finish; started again, it goes on with the run that it was stopped in. At the end, or with --report,
it writes NAME.md, NAME.json and NAME.svg.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import socket
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

from allreduce.commands.parent_death import die_with_parent
from benchmarks.large_minibatch.grid import CPU, GPU, LONG, SMOKE, Grid, Run
from benchmarks.large_minibatch.report import write_report

_GRIDS = {"cpu": CPU, "long": LONG, "gpu": GPU, "smoke": SMOKE}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing, then write the report."""
    options = _parser().parse_args(arguments)
    out: Path = options.out or options.report
    grid = _GRIDS[options.grid]
    if options.report is None:
        runs = [r for r in grid.runs(options.seeds) if r.kn in options.only or not options.only]
        grid = replace(grid, options=(*grid.options, *options.more))
        _train(grid, runs, out, options.jobs)
    rows = read_rows(out)
    if not rows:
        print(f"large_minibatch: {out} holds no finished run", file=sys.stderr)
        return 2
    write_report(rows, grid, options.save or out / "report")
    return 0


def read_rows(out: Path) -> list[dict[str, Any]]:
    """Return the rows of the finished runs of a directory, in the order in which they finished."""
    path = out / "rows.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.large_minibatch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, metavar="DIR", help="train, and keep everything here")
    where.add_argument("--report", type=Path, metavar="DIR", help="train nothing, only report")
    grids = parser.add_mutually_exclusive_group()
    for name, text in (
        ("cpu", "resnet8 at 14x14, 64 to 4,096: half a CPU hour (default)"),
        ("long", "the same with three times the iterations"),
        ("gpu", "ResNet-50 at 32x32, 256 to 8,192, on one GPU: about ten minutes"),
        ("smoke", "every variant for a moment, on the shipped digits"),
    ):
        grids.add_argument(f"--{name}", dest="grid", action="store_const", const=name, help=text)
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time")
    parser.add_argument("--seeds", type=_numbers, metavar="S,S,...", help="(default: the grid's)")
    parser.add_argument("--only", type=_numbers, default=(), metavar="KN,...", help="minibatches")
    parser.add_argument("--save", type=Path, metavar="NAME", help="where the report goes")
    parser.add_argument("more", nargs="*", metavar="-- OPTION", help="of trainer.run, in each run")
    parser.set_defaults(grid="cpu")
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _train(grid: Grid, runs: Sequence[Run], out: Path, jobs: int) -> None:
    """Train the runs that have no row yet, `jobs` at a time."""
    out.mkdir(parents=True, exist_ok=True)
    rows = read_rows(out)
    done = {row["name"] for row in rows}
    missing = [run for run in runs if run.name not in done]
    print(f"{len(missing)} of {len(runs)} runs to train", flush=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, die_with_parent, (os.getpid(),)) as pool:
        futures = [pool.submit(_run, grid, run, out / run.name) for run in missing]
        for count, future in enumerate(as_completed(futures), 1):
            rows.append(row := future.result())
            partial = out / "rows.json.part"
            partial.write_text(json.dumps(rows, indent=1) + "\n")
            partial.replace(out / "rows.json")
            print(f"{count}/{len(missing)} {row['name']}: {row['error']:.2%}", flush=True)


def _run(grid: Grid, run: Run, directory: Path) -> dict[str, Any]:
    """Train one run in this process, as the only process of a job of the trainer."""
    from trainer.config.command_line import parse
    from trainer.run import main as train
    from trainer.training.learning_rate import Schedule

    directory.mkdir(exist_ok=True)  # a run that was stopped goes on from its checkpoint
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    argv = [*grid.argv(run), f"--out={directory / 'run'}"]
    began, began_cpu = time.perf_counter(), time.process_time()
    diverged = False
    with (directory / "log").open("w") as log, contextlib.redirect_stdout(log):
        try:
            code = train(argv)
        except FloatingPointError as error:
            print(error, file=log)
            code, diverged = 0, True
    if code:
        raise RuntimeError(f"{run.name}: trainer.run {' '.join(argv)} returned {code}")
    return {
        "name": run.name,
        "kn": run.kn,
        "variant": run.variant.name,
        "seed": run.seed,
        "eta": Schedule.from_config(parse(argv, os.environ), grid.images // run.kn).target,
        "diverged": diverged,
        **_outcome(directory / "run", grid.last, diverged),
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - began_cpu,
        "argv": argv[:-1],
    }


def _outcome(directory: Path, last: int, diverged: bool) -> dict[str, Any]:
    """What the run directory says: the error as defined, and the curves."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    errors = [line["test_error"] for line in lines if line["kind"] == "test"]
    environment = json.loads((directory / "env.json").read_text())
    return {
        "error": 1.0 if diverged else statistics.median(errors[-last:]),
        "test_errors": errors,
        "train_curve": [[line["epoch"], line["train_error"]] for line in train],
        "iterations": train[-1]["iteration"] if train else 0,
        "commit": environment["commit"],
        "torch": environment["torch"],
        "cpu": environment["cpu"],
    }


if __name__ == "__main__":
    sys.exit(main())
