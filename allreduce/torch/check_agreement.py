"""Whether all ranks have made the same thing, and what one does that cannot go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from allreduce.errors import Error, MismatchError, UsageError

if TYPE_CHECKING:
    from allreduce.communicator.communicator import Communicator

__all__ = ["check_agreement", "refuse"]


def check_agreement(comm: Communicator, what: str, lines: Sequence[str]) -> None:
    """Raises MismatchError on every rank if any rank's lines are not those of rank 0.

    what: the name of what the lines describe.
    """
    mine = np.frombuffer("\n".join(lines).encode(), np.uint8).copy()
    size = comm.broadcast(np.array([mine.size], np.int64))
    first = comm.broadcast(mine.copy() if comm.rank == 0 else np.empty(int(size[0]), np.uint8))
    differs = not np.array_equal(mine, first)
    others = np.flatnonzero(comm.allgather(np.array([differs])))
    if not others.size:
        return
    if not differs:
        ranks = ", ".join(map(str, others))
        raise MismatchError(
            f"rank {ranks} passes other parameters or arguments to {what} than rank {comm.rank}; "
            "its own error says which"
        )
    theirs = first.tobytes().decode().split("\n")
    here, there = next(
        ((a, b) for a, b in zip([*lines, "no more"], [*theirs, "no more"], strict=False) if a != b),
        ("", ""),
    )
    raise MismatchError(f"{what} differs: rank {comm.rank} has {here!r} where rank 0 has {there!r}")


def refuse(comm: Communicator, why: str) -> NoReturn:
    """Raises UsageError, and lets no other rank wait for this one.

    Where every rank refuses by the same words the group stays usable; else all others get a
    MismatchError.
    """
    try:
        comm.allreduce(np.zeros(1, np.int8), "max", name=why)
    except Error as error:
        raise UsageError(why) from error
    raise UsageError(why)
