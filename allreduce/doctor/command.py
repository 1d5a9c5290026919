"""Examines the hosts and the network of a job: `python -m allreduce.doctor` on each of its ranks.

It starts as the job itself does, needs no group and no torch (but under torchrun, whose store only
torch can read), and reports whoever comes: a rank that never does is part of the report.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from allreduce.commands.parser import Parser, at_least, parse_seconds
from allreduce.commands.run_on_ranks import InitArguments, run_command
from allreduce.doctor.gathering import Gathering
from allreduce.doctor.report import as_json, lines
from allreduce.doctor.steps import Steps, findings_of
from allreduce.errors import UsageError
from allreduce.rendezvous.launcher_environment import detect_launch, open_store
from allreduce.rendezvous.store import PrefixStore, Store, store_host
from allreduce.rendezvous.tcp_store import TcpStore

__all__ = ["main"]

_RANKS_MAX = 512
_EPILOG = """
Start it on every rank, as the job that it precedes:
  torchrun --nnodes 2 --nproc-per-node 4 ... -m allreduce.doctor
  srun -N 2 --ntasks-per-node 4 python -m allreduce.doctor
  mpirun -n 8 -x MASTER_ADDR=node1 -x MASTER_PORT=29500 python -m allreduce.doctor
or alone, for this machine:
  python -m allreduce.doctor --ranks 4
Rank 0 prints a table and a line for each fault, with its remedy. The exit status is 0, 1 if there
is an error (warnings do not count), 2 for options that cannot work.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorOptions:
    """How to examine."""

    ranks: int | None
    timeout: float
    step: float
    quick: bool
    json: Path | None


class _Terminated(BaseException):
    """The launcher ends the job, for instance since another rank has died."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line on one rank; return its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return run_command("allreduce.doctor", arguments, _parse, _member)


def _parse(arguments: Sequence[str], *, speaks: bool) -> DoctorOptions:
    parser = Parser(
        prog="python -m allreduce.doctor",
        description="Finds what is wrong with the hosts and the network of a job, before it runs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--ranks", type=at_least(1), metavar="N", help="start so many ranks on this machine")
    add("--timeout", type=parse_seconds, default="60", metavar="S", help="to wait for ranks (60)")
    add("--step", type=parse_seconds, default="20", metavar="S", help="for each step after it (20)")
    add("--quick", action="store_true", help="leave out how fast the links are")
    add("--json", type=Path, metavar="FILE", help="rank 0 also writes all that it knows there")
    parser.speaks = speaks
    options = DoctorOptions(**vars(parser.parse_args(arguments)))
    if options.ranks is not None and options.ranks > _RANKS_MAX:
        parser.error(f"--ranks {options.ranks}: at most {_RANKS_MAX} are started on one machine")
    return options


def _member(options: DoctorOptions, place: InitArguments) -> int:
    """Be a rank of the job."""
    launch = detect_launch(rank=place.get("rank"), world_size=place.get("world_size"))
    if options.json is not None and launch.rank == 0:
        try:
            options.json.open("a").close()
        except OSError as error:
            raise UsageError(
                f"--json {options.json}: {error.strerror}; name another file"
            ) from None
    # Without the job's secret: ranks that have another one are to be named, not shut out.
    store = place.get("store") or open_store(launch, options.timeout, secret=b"")
    try:
        gathering = Gathering(PrefixStore(store, "doctor"), launch.rank, launch.world_size)
        steps = Steps(gathering, launch, seconds=options.step, with_rates=not options.quick)
        route_to = _route_to(store)
        if launch.rank != 0:
            steps.walk(options.timeout, route_to)
            return gathering.leave(0)
        ended = _walk_until_terminated(steps, options.timeout, route_to)
        return _report(options, gathering, steps, ended)
    finally:
        if isinstance(store, TcpStore):
            store.close()


def _route_to(store: Store) -> str | None:
    """Return the host by whose route a rank's address is chosen; see rendezvous/startup.py."""
    return store_host(store) or os.environ.get("MASTER_ADDR")


def _walk_until_terminated(steps: Steps, seconds: float, route_to: str | None) -> bool:
    """Walk; True if the launcher ended the job before. What is known then is reported."""

    def leave(_number: int, _frame: FrameType | None) -> NoReturn:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, leave)
    try:
        steps.walk(seconds, route_to)
    except _Terminated:
        return True
    finally:
        signal.signal(signal.SIGTERM, before)
    return False


def _report(options: DoctorOptions, gathering: Gathering, steps: Steps, ended: bool) -> int:
    if ended:
        gathering.give_up()
    examination = steps.examination
    findings = findings_of(examination)
    code = int(ended or any(finding.severity == "error" for finding in findings))
    if ended:
        print("error: the launcher ended the examination before its end; this is what was known")
    print(*lines(examination, findings), sep="\n", flush=True)
    if options.json is not None:
        options.json.write_text(as_json(examination, findings, code))
    return code if ended else gathering.leave(code)
