"""`python -m trainer.report RUN...` prints runs, compares them and draws them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer.output.end_table import table

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Prints runs and, with --plot, draws them; 2 if one is not a run. `input` is a calculator."""
    try:
        if argv and argv[0] == "input":
            return _input(argv[1:])
        return _runs(argv)
    except (ValueError, ImportError) as error:
        print(f"trainer.report: {error}", file=sys.stderr)
        return 2


def _runs(argv: Sequence[str]) -> int:
    from trainer.report.plots import draw
    from trainer.report.runs import read_run
    from trainer.report.text import compared, epochs

    parser = argparse.ArgumentParser(
        prog="python -m trainer.report",
        description="Curves, time split and scaling of runs; several are compared.",
        epilog="`python -m trainer.report input --help`: what GPUs need to be fed with images.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directory")
    parser.add_argument("--plot", metavar="FILE", help="draw them, too, as .png or .svg")
    asked = parser.parse_args(argv)
    if asked.plot and Path(asked.plot).suffix not in (".png", ".svg"):
        raise ValueError(f"--plot {asked.plot}: name a .png or .svg")
    runs = [read_run(Path(name)) for name in asked.runs]
    for run in runs:
        done = (
            table(run.summary)
            if run.summary
            else f"not complete, epoch {run.train[-1]['epoch']:.4g}"
        )
        print(f"{run.name}\n{done}\n{epochs(run)}\n")
    if len(runs) > 1:
        print(compared(runs))
    if asked.plot:
        try:
            draw(runs, Path(asked.plot))
        except ImportError:
            raise ImportError("--plot: pip install 'hier-allreduce[trainer]' first") from None
        print(f"drawn: {asked.plot}")
    return 0


def _input(argv: Sequence[str]) -> int:
    from trainer.report.input_requirements import lines

    parser = argparse.ArgumentParser(
        prog="python -m trainer.report input",
        description="What GPUs need of cores, disks and networks to be fed with images.",
    )
    parser.add_argument("--gpus", type=int, required=True, metavar="K", help="of the job")
    parser.add_argument("--rate", type=float, required=True, metavar="R", help="images/s of one")
    parser.add_argument("--gpus-per-node", type=int, default=8, metavar="L", help="(default: 8)")
    asked = parser.parse_args(argv)
    text = lines(gpus=asked.gpus, rate=asked.rate, gpus_per_node=asked.gpus_per_node)
    print("\n".join(text))
    return 0
