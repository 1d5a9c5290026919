"""The command line of `python -m allreduce.bench`: the options of nccl-tests, and some of ours."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from allreduce import _C
from allreduce.bench.cases import KINDS
from allreduce.bench.expected_values import storage
from allreduce.commands.parser import Parser, at_least, parse_bytes, parse_seconds, words, words_of
from allreduce.communicator.arrays import DTYPES
from allreduce.communicator.types import LocalForm
from allreduce.schedules import algorithms

__all__ = ["Options", "parse"]

_OPS = ("sum", "avg", "min", "max", "prod", "band", "bor", "bxor")
_ALIASES = {"half": "float16", "float": "float32", "double": "float64"}  # nccl-tests' names
_CALLS = ((8 << 10, 1000), (1 << 20, 100))  # by default, up to so many bytes
_CALLS_BEYOND = 20
_RANKS_MAX = 512  # that this machine is asked to start
_EPILOG = """
Start it on every rank, as any program of the job:
  torchrun --nproc-per-node 4 -m allreduce.bench -b 1K -e 64M
  srun -N 2 --ntasks-per-node 4 python -m allreduce.bench --algo auto,all
  mpirun -n 4 python -m allreduce.bench --collective alltoall
or alone, with ranks on this machine:
  python -m allreduce.bench --ranks 4 --nodes 2
The exit status is 0, 1 if a result was wrong or a rank failed, 2 for options that cannot work.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to measure; the same on all ranks."""

    collective: str
    minbytes: int
    maxbytes: int
    stepfactor: int
    iters: int | None
    warmup_iters: int
    check: int
    op: tuple[str, ...]
    datatype: tuple[str, ...]
    root: int
    algo: tuple[str, ...]
    symmetric: bool
    local: LocalForm
    nodes: int | None
    ranks: int | None
    timeout: float
    json: Path | None

    def sizes(self) -> list[int]:
        """Return the bytes of each row."""
        sizes = [self.minbytes]
        while sizes[-1] * self.stepfactor <= self.maxbytes:
            sizes.append(sizes[-1] * self.stepfactor)
        return sizes

    def calls(self, nbytes: int) -> int:
        """Return how many calls to time for a row."""
        if self.iters is not None:
            return self.iters
        return next((calls for limit, calls in _CALLS if nbytes <= limit), _CALLS_BEYOND)

    @property
    def calls_in_words(self) -> str:
        """Return `calls` for the reader."""
        if self.iters is not None:
            return f"{self.iters} calls"
        (small, many), (medium, some) = _CALLS
        return (
            f"{many} calls to {small >> 10} KiB, {some} to {medium >> 20} MiB, "
            f"{_CALLS_BEYOND} beyond"
        )


def parse(arguments: Sequence[str], *, speaks: bool) -> Options:
    """Return the options; SystemExit with status 2 and one sentence where they cannot work.

    speaks: this rank prints that sentence, and help.
    """
    parser = _parser()
    parser.speaks = speaks
    fields = vars(parser.parse_args(arguments))
    if fields["maxbytes"] is None:
        fields["maxbytes"] = max(fields["minbytes"], parse_bytes("64M"))
    if not KINDS[fields["collective"]].reduces:
        fields["op"] = ("none",)
    options = Options(**fields)
    if wrong := _contradiction(options):
        parser.error(wrong)
    return options


def _parser() -> Parser:
    parser = Parser(
        prog="python -m allreduce.bench",
        description="Measures collectives on the ranks of a job, and checks their results.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--collective", choices=sorted(KINDS), default="allreduce")
    add("-b", "--minbytes", type=parse_bytes, default="1K", metavar="N", help="least size (1K)")
    add("-e", "--maxbytes", type=parse_bytes, metavar="N", help="largest size (64M)")
    add("-f", "--stepfactor", type=at_least(2), default=4, metavar="K", help="between sizes (4)")
    add(
        "-n",
        "--iters",
        type=at_least(1),
        metavar="N",
        help=f"calls timed for a row ({_CALLS[0][1]} where small, down to {_CALLS_BEYOND})",
    )
    add("-w", "--warmup_iters", type=at_least(0), default=5, metavar="N", help="calls before (5)")
    add(
        "-c",
        "--check",
        type=at_least(0),
        default=1,
        metavar="N",
        help="further calls whose results are checked (1)",
    )
    add("-o", "--op", type=words_of(_OPS), default="sum", help=f"a list of {','.join(_OPS)} (sum)")
    dtypes = words_of(DTYPES, _ALIASES)
    add("-d", "--datatype", type=dtypes, default="float32", help="a list (float32)")
    add("-r", "--root", type=at_least(0), default=0, help="of broadcast, reduce and others (0)")
    add(
        "--algo",
        type=words,
        default="auto",
        help="a list (auto); auto marks its choice, all stands for every algorithm there is",
    )
    add("--symmetric", action="store_true", help="also an allreduce in symmetric memory")
    add(
        "--local",
        choices=get_args(LocalForm),
        default="rs_ag",
        help="how the ranks of a node work together (rs_ag); none: algorithms among all ranks",
    )
    add("--nodes", type=at_least(1), metavar="N", help="play this many nodes (as the hosts are)")
    add("--ranks", type=at_least(1), metavar="N", help="start so many ranks on this machine")
    add("--timeout", type=parse_seconds, default="300", metavar="S", help="of a call (300)")
    add("--json", type=Path, metavar="FILE", help="rank 0 also writes the results there")
    return parser


def _contradiction(options: Options) -> str | None:
    """Say what is wrong whatever the number of ranks, in one sentence."""
    if options.maxbytes < options.minbytes:
        return f"-e {options.maxbytes} is less than -b {options.minbytes}; give a larger one"
    if options.ranks is not None and options.ranks > _RANKS_MAX:
        return f"--ranks {options.ranks}: at most {_RANKS_MAX} are started on one machine"
    if options.symmetric and options.collective != "allreduce":
        return f"--symmetric goes with allreduce, not with {options.collective}; leave it out"
    known = _algorithms(options.collective)
    for name in options.algo:
        if name not in {*known, "bucket", "all", "auto"} or (name != "auto" and not known):
            those = f"there are {', '.join(known)}" if known else "it has no choice; leave it out"
            return f"--algo {name}: {options.collective} does not know it; {those}"
    if KINDS[options.collective].reduces:
        for dtype in options.datatype:
            for op in options.op:
                one = np.ones(1, storage(dtype))
                try:
                    _C.reduce(one, one.copy(), dtype, op)
                except ValueError as error:
                    return f"-o {op} -d {dtype}: {error}"
    return None


def _algorithms(collective: str) -> list[str]:
    return algorithms(collective) if collective in _C.Collective.__members__ else []
