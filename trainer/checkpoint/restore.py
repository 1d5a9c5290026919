"""Going on from a checkpoint: rank 0 reads it, all take it over, whatever their number."""

from __future__ import annotations

import dataclasses
import json
import math
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainer.checkpoint import find
from trainer.checkpoint.file import CheckpointError, Facts
from trainer.config.checks import ConfigError
from trainer.output.end_table import counted

if TYPE_CHECKING:
    from allreduce import Communicator
    from trainer.checkpoint.memory import Memory
    from trainer.checkpoint.states import States
    from trainer.training.run_state import Job

__all__ = ["Restart", "restart", "share", "take_back"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """What a run goes on from, and what there is to say about it."""

    facts: Facts
    words: str
    same_job: bool = False  # processes of this job go on; else a checkpoint was read


def restart(job: Job, states: States) -> Restart | None:
    """Brings `job` and `states` to where the newest whole checkpoint was; every process calls it.

    None if the run begins anew. ConfigError, on every process, if it cannot go on.
    """
    comm, payload, answer = job.comm, b"", {}
    if comm.rank == 0:
        try:
            found = find.load(find.begin(job.config))
            if found is not None:
                payload, facts, path, refused = found
                answer = {"facts": dataclasses.asdict(facts), "path": str(path)}
                answer["refused"] = refused
        except (ConfigError, CheckpointError) as error:
            answer = {"error": str(error)}
    answer = json.loads(share(comm, json.dumps(answer).encode(), "what to go on from"))
    if "error" in answer:
        raise ConfigError(answer["error"])
    if not answer:
        return None
    facts = Facts(**answer["facts"])
    job.saver.went_on_from(Path(answer["path"]))
    states.restore(share(comm, payload, answer["path"]), facts.workers)
    _take_over(job, facts)
    lines = [f"refused: {line}" for line in answer["refused"]]
    return Restart(facts=facts, words="\n".join([*lines, _words(job, facts, answer["path"])]))


def take_back(job: Job, states: States, memory: Memory, words: str) -> Restart:
    """Brings `job` and `states` to where `memory` is, with `words` about why."""
    states.restore_own(memory.common, memory.own)
    _take_over(job, memory.facts)
    job.guard.skipped = memory.skipped
    if memory.resumed:
        job.saver.went_on_from(memory.resumed)
    workers, scaled = job.config.workers, f"kn = {job.config.minibatch}"
    rest = (
        f"{counted(workers, 'worker')} go{'es' * (workers == 1)} on from iteration "
        f"{job.iteration} of {job.last_iteration} with {scaled}, "
        f"lr {job.schedule(job.iteration):.4g}"
    )
    return Restart(facts=memory.facts, words=f"{words}; {rest}", same_job=True)


def _take_over(job: Job, facts: Facts) -> None:
    job.move_to(facts.epoch, facts.offset)
    job.best_error = math.inf if facts.best_error is None else facts.best_error
    job.last_test = facts.test
    spent = dict(facts.spent)
    job.images = job.images_before = int(spent.pop("images"))
    job.began -= spent.pop("elapsed")
    job.watch.seconds.update(spent)


def _words(job: Job, facts: Facts, path: str) -> str:
    config = job.config
    line = f"resumed from {path}: epoch {facts.progress:.4g}, iteration {job.iteration}"
    if facts.workers == config.workers:
        return line
    left = job.sampler.size - job.offset
    group = job.optimizer.param_groups[0]
    momentum = "form (9) holds no lr and stays"
    if group["form"] == "absorbed":
        momentum = "form (10) is corrected by lr / lr_before in the next update"
    return (
        f"{line}; {counted(config.workers, 'worker')} instead of {facts.workers}: "
        f"kn = {config.minibatch}, lr {job.schedule(job.iteration):.4g}; momentum of {momentum}; "
        f"the {left} images left of the epoch are dealt out anew; worker w has the statistics of "
        f"worker w mod {facts.workers}"
    )


def share(comm: Communicator, data: bytes, what: str, root: int = 0) -> bytes:
    """What rank `root` gives, on every rank, and the same on every rank.

    CheckpointError on every rank, which names those that got something else.
    """
    head = np.frombuffer(len(data).to_bytes(8, "little") + sha256(data).digest(), np.uint8).copy()
    comm.broadcast(head, root=root)
    buffer = np.empty(int.from_bytes(head[:8].tobytes(), "little"), np.uint8)
    if comm.rank == root:
        buffer[:] = np.frombuffer(data, np.uint8)
    if buffer.size:
        comm.broadcast(buffer, root=root)
    same = sha256(buffer.data).digest() == head[8:].tobytes()
    wrong = np.flatnonzero(comm.allgather(np.array([same], np.uint8)) == 0).tolist()
    if wrong:
        raise CheckpointError(
            f"{what}: rank {', '.join(map(str, wrong))} received other bytes than rank {root} sent "
            "(their SHA-256 differs): memory, network card or cable of that machine is faulty"
        )
    return buffer.tobytes()
