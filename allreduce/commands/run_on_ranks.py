"""Runs a command on each rank of a job, or alone starts ranks for it on this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Protocol, TypedDict, TypeVar

from allreduce.commands.local_ranks import ChildRank, run
from allreduce.commands.parent_death import die_with_parent
from allreduce.errors import AbortedError, Error, PeerError, UsageError
from allreduce.rendezvous.launcher_environment import detect_launch
from allreduce.rendezvous.store import Store

__all__ = ["InitArguments", "run_command"]


class InitArguments(TypedDict, total=False):
    """Arguments of `init` for a rank that was started here; empty under a launcher."""

    rank: int
    world_size: int
    store: Store


class JobOptions(Protocol):
    """The options that every such command has: --ranks and --timeout."""

    @property
    def ranks(self) -> int | None: ...
    @property
    def timeout(self) -> float: ...


Options = TypeVar("Options", bound=JobOptions)
Options_co = TypeVar("Options_co", bound=JobOptions, covariant=True)


class Parse(Protocol[Options_co]):
    """Reads the command line; `speaks` where this rank prints what is wrong with it."""

    def __call__(self, arguments: Sequence[str], *, speaks: bool) -> Options_co: ...


def run_command(
    program: str,
    arguments: Sequence[str],
    parse: Parse[Options],
    member: Callable[[Options, InitArguments], int],
) -> int:
    """Run `member` on this rank, or start all ranks of the module `program`; the exit status."""
    child = ChildRank.taken()
    rank = 0
    try:
        launch = None if child else detect_launch()
        rank = child.rank if child else launch.rank if launch else 0
        options = parse(arguments, speaks=rank == 0)
        if options.ranks is None or child is not None:
            return member(options, _place(options, child))
        if launch is not None and launch.world_size > 1:
            raise UsageError(f"--ranks starts ranks itself; leave it out under {launch.launcher}")
        return run(options.ranks, program, arguments)
    except (Error, OSError, MemoryError) as error:
        usage = isinstance(error, UsageError)
        # What all ranks see is said by one, what another rank has caused by that one.
        if rank == 0 or not (usage or isinstance(error, (PeerError, AbortedError))):
            who = "" if usage else f"rank {rank}: "
            print(f"{program}: {who}{error}", file=sys.stderr)
        return 2 if usage else 1


def _place(options: JobOptions, child: ChildRank | None) -> InitArguments:
    if child is None:
        return {}
    assert options.ranks is not None
    die_with_parent(child.parent)
    return {
        "rank": child.rank,
        "world_size": options.ranks,
        "store": child.store(options.timeout),
    }
