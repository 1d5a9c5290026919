"""After a death: those alive agree on a state, and their number becomes the number of workers."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

from allreduce import AbortedError, PeerError, Timeout
from trainer.checkpoint.memory import Memory, agree
from trainer.config.options import Config
from trainer.launch.members import Members, take_output
from trainer.output.run_lock import own_run_directory

__all__ = ["DEATHS", "Interrupted", "go_on"]

DEATHS = (PeerError, AbortedError, Timeout)  # what a process sees of one that died, or hangs


class Interrupted(Exception):
    """A process died while all trained; `memory` is what this one knows."""

    def __init__(self, memory: Memory) -> None:
        super().__init__("another worker died")
        self.memory = memory


def go_on(
    config: Config, members: Members, memory: Memory, owned: contextlib.ExitStack
) -> tuple[Config, Memory, str]:
    """Makes a group of the living; the configuration with so many workers, their state, and why.

    A process that becomes rank 0 takes the run directory over, until `owned` is closed. Deaths
    meanwhile are dealt with alike. AbortedError if the others went on without this process.
    """
    speaks = members.control.rank == 0
    while True:
        members.shrink()
        try:
            gone = members.gone()
            memory = agree(members.control, memory)
            alive = members.control.world_size
            config = dataclasses.replace(
                config,
                workers=alive * config.workers_virtual,
                nodes=min(config.nodes, alive),
            )
            members.join(config)
            break
        except DEATHS:  # one more
            continue
    if members.comm.rank == 0 and not speaks:
        take_output()
        owned.enter_context(own_run_directory(Path(config.out)))
    return config, memory, _words(gone, memory, config)


def _words(gone: list[int], memory: Memory, config: Config) -> str:
    place = f"in iteration {memory.facts.iteration}"
    if not gone:
        return f"connections failed {place}, and nobody died"
    who = "worker" if config.workers_virtual == 1 else "process"
    if len(gone) == 1:
        return f"{who} {gone[0]} was lost {place}"
    plural = {"worker": "workers", "process": "processes"}[who]
    return f"{plural} {', '.join(map(str, gone))} were lost {place}"
