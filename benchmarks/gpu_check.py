"""Everything that one GPU can tell of this project, in one run: python -m benchmarks.gpu_check

Each section is a process with a budget of seconds; one that fails or is impossible says why, and
the others go on. Without a GPU all that can runs on the CPU, in small sizes; each row says on what
it ran. Exit status 1: a section of checks failed. docs/gpu.md has more.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

from benchmarks.gpu import report
from benchmarks.gpu.place import Place, find_place
from benchmarks.gpu.rows import IMPOSSIBLE, Section
from benchmarks.gpu.section_processes import ROOT, run_apart

_RESULTS = ROOT / "benchmarks/results"
_LEAST = 10.0  # seconds: less is not worth a start

# In the order in which they run: what matters most comes first. Name, checks, seconds.
SECTIONS = (
    ("build", False, 240),
    ("machine", False, 45),
    ("kernels", True, 90),
    ("peers", True, 60),
    ("processes", True, 150),
    ("killed_peer", True, 60),
    ("ceilings", False, 40),
    ("latencies", False, 30),
    ("speed", False, 60),
    ("resnet", False, 150),
    ("sanitizers", True, 200),
)


def main(argv: list[str] | None = None) -> int:
    """Run the sections; print and write the report."""
    arguments = _parser().parse_args(argv)
    names = [name for name, _, _ in SECTIONS if name in (arguments.only or [name])]
    names = [name for name in names if name not in arguments.skip]
    deadline = time.monotonic() + arguments.seconds
    when = datetime.now(timezone.utc)
    commit = _commit()
    arguments.out.mkdir(parents=True, exist_ok=True)
    place = Place(gpu=None, why="not asked yet")
    file: Path | None = None
    sections: list[Section] = []
    for name, checks, budget in SECTIONS:
        if name not in names:
            continue
        if file is None and name != "build":  # torch may be asked only once the core is built
            place = find_place()
            kind = "gpu" if place.gpu else "gpu_check_without_gpu"
            file = arguments.out / f"{kind}_{when:%Y-%m-%d}.json"
        section = Section(name=name, checks=checks, budget=budget)
        left = min(budget, deadline - time.monotonic())
        if left < _LEAST:
            section.state, section.reason = IMPOSSIBLE, f"no time left of {arguments.seconds:g} s"
        else:
            run_apart(section, place, quick=arguments.quick, seconds=left)
        sections.append(section)
        print("\n".join(report.lines(section)), flush=True)
        if file is not None:
            report.write(file, place, sections, when=when.isoformat(), commit=commit)
    print("\n".join(report.summary(place, sections)))
    if file is not None:
        print(f"written: {file}")
    return report.exit_status(sections)


def _parser() -> argparse.ArgumentParser:
    names = [name for name, _, _ in SECTIONS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=names, help="these sections alone")
    parser.add_argument("--skip", nargs="+", choices=names, default=[], help="not these sections")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes, as a test")
    parser.add_argument("--seconds", type=float, default=570, help="for all sections together")
    parser.add_argument("--out", type=Path, default=_RESULTS, help="folder of the JSON file")
    return parser


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
