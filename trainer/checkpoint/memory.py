"""A checkpoint in memory: what each process of an elastic job knows when a worker has died.

Processes may be one iteration apart. One that has ended an iteration had the votes of all others
(`Guard.sound`), so they had run all of its forward and backward passes. What they lack is the
update, and they take the weights and the optimizer's state from the first.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainer.checkpoint.file import Facts
from trainer.checkpoint.restore import share
from trainer.checkpoint.states import OwnStates, States, renamed

if TYPE_CHECKING:
    from allreduce import Communicator
    from trainer.training.run_state import Job

__all__ = ["Memory", "agree", "remember"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Where a process is, and what it needs to go on from there.

    `own` is what the workers here differ in. Where an iteration is `under_way`, `own` is of its end
    or of somewhere inside of it, and `before` of its begin. `updated`: whether the last iteration
    that ended made its update. `common` is empty until all have agreed on it; the states are asked.
    """

    facts: Facts
    own: OwnStates
    before: OwnStates
    under_way: bool = False
    updated: bool = True
    skipped: int = 0
    resumed: Path | None = None
    common: bytes = b""
    states: States | None = None

    @property
    def position(self) -> tuple[int, int, int]:
        """Epoch, images of it that are used up, and whether the test of this position is done."""
        return self.facts.epoch, self.facts.offset, int(self.facts.tested)


def remember(job: Job, states: States) -> Memory:
    """What this process knows, wherever in training it was interrupted."""
    own, guard = states.own_states(), job.guard
    random = renamed(job.random_before, -job.virtual.workers[0])
    statistics = dict(zip(own["statistics"], guard.before, strict=True))
    before = {"random": random, "statistics": statistics}
    return Memory(
        facts=job.facts,
        own=own,
        before=before,
        under_way=guard.under_way,
        updated=guard.updated,
        skipped=guard.skipped,
        resumed=job.saver.resumed,
        states=states,
    )


def agree(comm: Communicator, mine: Memory) -> Memory:
    """Takes the farthest of all processes for the state to go on from; every process calls it.

    A begun iteration that nobody has ended is dropped: what was before it is put back.
    """
    rows = comm.allgather(np.array(mine.position, np.int64)).reshape(comm.world_size, 3).tolist()
    root = rows.index(max(rows))
    leads = comm.rank == root
    said = {
        "facts": dataclasses.asdict(mine.facts),
        "updated": mine.updated,
        "skipped": mine.skipped,
    }
    said = json.loads(share(comm, json.dumps(said).encode() if leads else b"", "position", root))
    common = mine.common
    if leads and mine.states is not None:
        common = bytes(mine.states.packed(mine.states.common_states()))
    common = share(comm, common if leads else b"", "the state in memory", root)
    return dataclasses.replace(
        mine,
        facts=Facts(**said["facts"]),
        own=_own(mine, behind=rows[comm.rank][:2] < rows[root][:2], updated=said["updated"]),
        under_way=False,
        updated=said["updated"],
        skipped=said["skipped"],
        common=common,
        states=None,
    )


def _own(mine: Memory, *, behind: bool, updated: bool) -> OwnStates:
    """What this process's workers have at the position that was agreed on."""
    if not mine.under_way:
        return mine.own
    if not behind:  # the iteration is dropped
        return mine.before
    if updated:
        return mine.own
    return {**mine.own, "statistics": mine.before["statistics"]}  # as Guard does, where it skips
