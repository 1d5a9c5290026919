"""Runs lives of simulated groups, each from a seed, on every core.

python -m tests.simulation.run --seconds 3600
python -m tests.simulation.run --seed 17       # one life, with what happens in it
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .build import build

APART = 10**12  # between the first seeds of two processes


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60, help="how long (default: 60)")
    parser.add_argument("--first", type=int, help="the first seed (default: drawn, and printed)")
    parser.add_argument("--seed", type=int, help="run this one only, and tell what happens")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    program = build()
    if options.seed is not None:
        return subprocess.run([program, str(options.seed)]).returncode
    first = random.SystemRandom().randrange(10**9) if options.first is None else options.first
    outputs = lives(program, first, options.seconds, options.jobs)
    print("\n".join(text for _, text in outputs))
    return max(status for status, _ in outputs)


def lives(program: Path, first: int, seconds: float, jobs: int) -> Sequence[tuple[int, str]]:
    """Exit status and output of each process. Different processes run different seeds."""
    running = [
        subprocess.Popen(
            [program, str(first + job * APART), str(APART), str(seconds)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for job in range(jobs)
    ]
    return [(process.wait(), process.communicate()[0].strip()) for process in running]


if __name__ == "__main__":
    sys.exit(main())
