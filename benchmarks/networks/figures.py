"""The paper's figures 7 and 8 on emulated hosts: time of an iteration, efficiency and images/s.

    python -m benchmarks.networks.figures --hosts 2,4,8,16,32 --json figures.json

Runs benchmarks/networks/training.py on each number of hosts, and prints a table. Gradients are 8
times smaller than ResNet-50's, and so is the rate. The dilation grows with the hosts, since all of
them share the cores of this machine. Efficiency is the paper's time of an iteration on one server,
which the sleeps are made of, divided by the time of an iteration here.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from allreduce.commands.parser import at_least
from benchmarks.networks.training import ITERATION

_SCALE = 8  # of bytes and rate
_GIGABITS, _DELAY = 50, "80us"
_DILATION_OF_HOST, _DILATION_LEAST = 3, 10
_IMAGES = 256  # of a server with 8 GPUs, each iteration
_DEADLINE = 1200


def main() -> None:
    """Measure, and print the table."""
    options = _parser().parse_args()
    found = {}
    for hosts in options.hosts:
        found[hosts] = _run(hosts, options.steps, options.ways)
        print(_rows(hosts, found[hosts]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def _run(hosts: int, steps: int, ways: str) -> Mapping[str, Sequence[float]]:
    dilation = max(_DILATION_LEAST, _DILATION_OF_HOST * hosts)
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "found.json")
        words = ["-m", "allreduce.emulate", "--hosts", str(hosts), "--delay", _DELAY]
        words += ["--rate", f"{_GIGABITS / _SCALE}Gbit", "--dilation", str(dilation), "--"]
        words += [sys.executable, "-m", "benchmarks.networks.training", "--warm-up", "2"]
        words += ["--bytes-scale", str(_SCALE), "--steps", str(steps), "--ways", ways]
        subprocess.run(
            [sys.executable, *words, "--json", str(result)],
            check=True,
            timeout=_DEADLINE,
            stdout=subprocess.DEVNULL,
        )
        seconds: Mapping[str, Sequence[float]] = json.loads(result.read_text())["seconds"]
        return seconds


def _rows(hosts: int, found: Mapping[str, Sequence[float]]) -> str:
    rows = []
    for name, seconds in found.items():
        taken = median(seconds)
        rate, efficiency = hosts * _IMAGES / taken, ITERATION / taken
        rows.append(f"{hosts:>4} hosts  {name:<36} {taken:.4f} s  {efficiency:.1%}  {rate:>7.0f}/s")
    return "\n".join(rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks.figures")
    add = parser.add_argument
    numbers = at_least(2)
    add("--hosts", type=lambda t: [numbers(w) for w in t.split(",")], default=[2, 4, 8, 16, 32])
    add("--steps", type=at_least(1), default=2)
    add("--ways", default="", help="words of the names of the ways to reduce that run")
    add("--json", type=Path)
    return parser


if __name__ == "__main__":
    main()
