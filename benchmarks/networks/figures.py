"""The paper's figures 7 and 8 on emulated hosts: time of an iteration, efficiency and images/s.

    python -m benchmarks.networks.figures --hosts 2,4,8,16,32 --json figures.json

Runs benchmarks/networks/training.py on each number of hosts, and prints a table. Gradients are 8
times smaller than ResNet-50's, and so is the rate. The dilation grows with the hosts, since all of
them share the cores of this machine. Efficiency is the time of the computation, which the sleeps
are made of, divided by the time of an iteration here. With no communication at all it is not 100 %
either: what the ranks do besides sleeping takes this machine's cores.

Another computation than the paper's: `--iteration 0.0931 --images 2048`, for example, is that of 8
GPUs which train 2,750 images a second each, 256 at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from allreduce.commands.parser import at_least, parse_seconds
from benchmarks.networks.prediction import predicted, published
from trainer.dry_run.duration import ITERATION

SCALE = 8  # of bytes and rate
HEAD = "hosts  way                            iteration  efficiency images/s   predicted   off"
_GIGABITS, _DELAY = 50, "80us"
_DILATION_OF_HOST, _DILATION_LEAST = 3, 12
_IMAGES = 256  # of the paper's servers with 8 GPUs, each iteration
_DEADLINE = 1200


def main() -> None:
    """Measure, and print the table."""
    options = _parser().parse_args()
    found: dict[int, Mapping[str, Any]] = {}
    for hosts in options.hosts:
        found[hosts] = run(hosts, options.steps, options.ways, options.dilation, options.iteration)
        if options.json:
            options.json.write_text(json.dumps({"scale": SCALE, "hosts": found}, indent=1) + "\n")
    print(HEAD)
    for hosts, one in found.items():
        print(*rows(hosts, one, options.images), sep="\n")


def run(
    hosts: int,
    steps: int,
    ways: str = "",
    dilation: int = 0,
    iteration: float = ITERATION,
    deadline: float = _DEADLINE,
) -> Mapping[str, Any]:
    """Return what benchmarks.networks.training has found on so many hosts.

    ways: words of the names of those that run. dilation: 0 for what the hosts need. iteration:
    seconds of computation.
    """
    dilation = dilation or max(_DILATION_LEAST, _DILATION_OF_HOST * hosts)
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "found.json")
        words = ["-m", "allreduce.emulate", "--hosts", str(hosts), "--delay", _DELAY]
        words += ["--rate", f"{_GIGABITS / SCALE}Gbit", "--dilation", str(dilation), "--"]
        words += [sys.executable, "-m", "benchmarks.networks.training", "--warm-up", "1"]
        words += ["--bytes-scale", str(SCALE), "--steps", str(steps), "--ways", ways]
        words += ["--iteration", str(iteration)]
        subprocess.run(
            [sys.executable, *words, "--json", str(result)],
            check=True,
            timeout=deadline,
            env={**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR"},  # no names of hosts are looked up
        )
        found: Mapping[str, Any] = json.loads(result.read_text())
        return found


def rows(hosts: int, found: Mapping[str, Any], images: int = _IMAGES) -> Iterator[str]:
    """Yield the lines of so many hosts: what was measured there, and what the model says."""
    computing, by_model = found["iteration"], predicted(hosts, found, SCALE)
    for way, times in found["seconds"].items():
        taken = median(times)
        error = f"{by_model[way] / taken - 1:+.1%}"
        yield _row(hosts, way, taken, computing, images) + f"{by_model[way]:>12.4f} s {error:>7}"
    for way, taken in published(hosts, found, SCALE).items():
        yield _row(hosts, way, taken, computing, images)


def _row(hosts: int, way: str, taken: float, computing: float, images: int) -> str:
    rate, efficiency = hosts * images / taken, computing / taken
    return f"{hosts:>5}  {way:<30} {taken:.4f} s {efficiency:>8.1%} {rate:>9.0f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks.figures")
    add = parser.add_argument
    numbers = at_least(2)
    add("--hosts", type=lambda t: [numbers(w) for w in t.split(",")], default=[2, 4, 8, 16, 32])
    add("--steps", type=at_least(1), default=2)
    add("--ways", default="", help="words of the names of the ways to reduce that run")
    add("--dilation", type=at_least(0), default=0, help="0: what the hosts need")
    add("--iteration", type=parse_seconds, default=ITERATION, help="seconds of computation")
    add("--images", type=at_least(1), default=_IMAGES, help="of a host in an iteration")
    add("--json", type=Path)
    return parser


if __name__ == "__main__":
    main()
