"""The command line of `python -m allreduce.tune`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from allreduce.commands.parser import Parser, at_least, parse_bytes, parse_seconds, words_of
from allreduce.communicator.types import LocalForm

__all__ = ["COLLECTIVES", "TuneOptions", "parse"]

COLLECTIVES = ("allreduce", "reduce_scatter", "allgather", "broadcast", "reduce")
_EPILOG = """
Start it on every rank of a job like those that will use the file:
  torchrun --nproc-per-node 4 -m allreduce.tune -o cluster.toml
  srun -N 2 --ntasks-per-node 4 python -m allreduce.tune -o cluster.toml
  mpirun -n 4 python -m allreduce.tune -o cluster.toml
or alone, with ranks on this machine:
  python -m allreduce.tune --ranks 4 --nodes 2
A file that is there already keeps its other layouts. Use it by ALLREDUCE_TUNING=cluster.toml or
allreduce.init(tuning="cluster.toml").
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneOptions:
    """What to measure; the same on all ranks."""

    output: Path
    minbytes: int
    maxbytes: int
    stepfactor: int
    collectives: tuple[str, ...]
    seconds: float
    local: LocalForm
    nodes: int | None
    ranks: int | None
    timeout: float

    def sizes(self) -> list[int]:
        """Return the sizes that are measured, in bytes."""
        sizes = [self.minbytes]
        while sizes[-1] * self.stepfactor <= self.maxbytes:
            sizes.append(sizes[-1] * self.stepfactor)
        return sizes


def parse(arguments: Sequence[str], *, speaks: bool) -> TuneOptions:
    """Return the options; SystemExit with status 2 and one sentence where they cannot work."""
    parser = _parser()
    parser.speaks = speaks
    options = TuneOptions(**vars(parser.parse_args(arguments)))
    if len(options.sizes()) < 2:
        parser.error(
            f"-b {options.minbytes} -e {options.maxbytes} -f {options.stepfactor}: two sizes are "
            "the least; give a larger -e"
        )
    return options


def _parser() -> Parser:
    parser = Parser(
        prog="python -m allreduce.tune",
        description="Measures this job's ranks, and writes what algo='auto' is to choose.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    file = Path("tuning.toml")
    add(
        "-o",
        "--output",
        type=Path,
        default=file,
        metavar="FILE",
        help=f"written by rank 0 ({file})",
    )
    add("-b", "--minbytes", type=parse_bytes, default="1K", metavar="N", help="least size (1K)")
    add("-e", "--maxbytes", type=parse_bytes, default="64M", metavar="N", help="largest size (64M)")
    add("-f", "--stepfactor", type=at_least(2), default=2, metavar="K", help="between sizes (2)")
    add(
        "--collectives",
        type=words_of(COLLECTIVES),
        default=",".join(COLLECTIVES),
        help=f"a list of {','.join(COLLECTIVES)} (all)",
    )
    add(
        "--seconds",
        type=parse_seconds,
        default="20",
        metavar="S",
        help="for the calls of each collective; larger sizes are left out when it is over (20)",
    )
    add(
        "--local",
        choices=get_args(LocalForm),
        default="rs_ag",
        help="how the ranks of a node work together (rs_ag)",
    )
    add("--nodes", type=at_least(1), metavar="N", help="play this many nodes (as the hosts are)")
    add("--ranks", type=at_least(1), metavar="N", help="start so many ranks on this machine")
    add(
        "--timeout", type=parse_seconds, default="300", metavar="S", help="seconds for a call (300)"
    )
    return parser
