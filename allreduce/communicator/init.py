"""allreduce.init: the communicator of a job."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from allreduce.communicator.communicator import Communicator
from allreduce.rendezvous.launcher_environment import detect_launch, open_store
from allreduce.rendezvous.store import Store

_OWN = ("rank", "world_size", "store", "master_addr", "master_port", "timeout")


def init(
    *,
    rank: int | None = None,
    world_size: int | None = None,
    store: Store | None = None,
    master_addr: str | None = None,
    master_port: int | None = None,
    timeout: float = 300.0,
    **options: Any,
) -> Communicator:
    """Make the communicator of this job: of torchrun, SLURM, Open MPI, MPICH, or of arguments.

    Without a launcher and without arguments it has one rank. `options` are those of
    `Communicator.from_store`.

    Raises:
        UsageError: a variable of the launcher or an argument is missing or makes no sense.
        Timeout: ranks did not come within `timeout` seconds; the message names them.
    """
    known = inspect.signature(Communicator.from_store).parameters
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, [*known, *_OWN], n=1, cutoff=0.7)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise TypeError(f"allreduce.init() has no argument {name!r}{hint}")
    launch = detect_launch(
        rank=rank, world_size=world_size, master_addr=master_addr, master_port=master_port
    )
    if store is None:
        store = open_store(launch, timeout)
    return Communicator.from_store(
        store, launch.rank, launch.world_size, timeout=timeout, **options
    )
