"""allreduce.init: the communicator of a job."""

from __future__ import annotations

from allreduce.communicator.communicator import Communicator
from allreduce.communicator.types import LocalForm
from allreduce.rendezvous.connect import ConnectOption
from allreduce.rendezvous.launcher_environment import detect_launch, open_store
from allreduce.rendezvous.node_layout import NodesOption
from allreduce.rendezvous.store import Store
from allreduce.rendezvous.tcp_store import TcpStore
from allreduce.tuning.option import TuningOption


def init(
    *,
    rank: int | None = None,
    world_size: int | None = None,
    store: Store | None = None,
    master_addr: str | None = None,
    master_port: int | None = None,
    timeout: float = 300.0,
    generation: int = 0,
    nodes: NodesOption = None,
    local: LocalForm = "rs_ag",
    rails: int | None = None,
    lanes: int | None = None,
    segment_bytes: int | None = None,
    connect: ConnectOption = None,
    checksum: bool | None = None,
    dead_after: float | None = None,
    measure: bool = True,
    tuning: TuningOption = None,
) -> Communicator:
    """Make the communicator of this job: of torchrun, SLURM, Open MPI, MPICH, or of arguments.

    Without a launcher and without arguments it has one rank. From `timeout` on the arguments are
    those of `Communicator.from_store`.

    Raises:
        UsageError: a variable of the launcher or an argument is missing or makes no sense.
        Timeout: ranks did not come within `timeout` seconds; the message names them.
    """
    launch = detect_launch(
        rank=rank, world_size=world_size, master_addr=master_addr, master_port=master_port
    )
    chosen = open_store(launch, timeout) if store is None else store
    try:
        return Communicator.from_store(
            chosen,
            launch.rank,
            launch.world_size,
            timeout=timeout,
            generation=generation,
            nodes=nodes,
            local=local,
            rails=rails,
            lanes=lanes,
            segment_bytes=segment_bytes,
            connect=connect,
            checksum=checksum,
            dead_after=dead_after,
            measure=measure,
            tuning=tuning,
        )
    except BaseException:
        if store is None and isinstance(chosen, TcpStore):
            chosen.close()  # its port is free for another try
        raise
