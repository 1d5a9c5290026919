"""allreduce.init: the communicator of a job."""

from __future__ import annotations

from typing import Any

from allreduce._launch import detect_launch, open_store
from allreduce._store import Store
from allreduce.communicator import Communicator


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
    launch = detect_launch(
        rank=rank, world_size=world_size, master_addr=master_addr, master_port=master_port
    )
    if store is None:
        store = open_store(launch, timeout)
    return Communicator.from_store(
        store, launch.rank, launch.world_size, timeout=timeout, **options
    )
