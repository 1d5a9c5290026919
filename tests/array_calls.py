"""Every call of a communicator that takes an array, for tests of what may be passed as one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from worlds import run_threads

from allreduce.errors import UsageError

WORLD_SIZE = 2

# Calls that change the array, calls that only read it, by name; x has one value for each rank.
IN_PLACE: dict[str, Callable[[Any, Any], Any]] = {
    "allreduce": lambda comm, x: comm.allreduce(x),
    "allreduce, asynchronous": lambda comm, x: comm.allreduce(x, async_op=True).wait(),
    "allreduce, named": lambda comm, x: comm.allreduce(x, name="loss"),
    "broadcast": lambda comm, x: comm.broadcast(x, root=1),
    "reduce": lambda comm, x: comm.reduce(x, root=0),
    "reduce_scatter in place": lambda comm, x: comm.reduce_scatter(x, in_place=True),
    "allgather in place": lambda comm, x: comm.allgather(x, in_place=True),
    "scatter": lambda comm, x: comm.scatter(x, np.ones(4) if comm.rank == 0 else None),
    "recv": lambda comm, x: comm.recv(x, 1 - comm.rank, timeout=2.0),
    "irecv": lambda comm, x: comm.irecv(x, 1 - comm.rank, timeout=2.0).wait(),
}
READS: dict[str, Callable[[Any, Any], Any]] = {
    "reduce_scatter": lambda comm, x: comm.reduce_scatter(x),
    "allgather": lambda comm, x: comm.allgather(x),
    "gather": lambda comm, x: comm.gather(x),
    "alltoall": lambda comm, x: comm.alltoall(x),
    "send": lambda comm, x: comm.send(x, 1 - comm.rank, timeout=2.0),
    "isend": lambda comm, x: comm.isend(x, 1 - comm.rank, timeout=2.0).wait(),
}


def refuses(call: Callable[[Any, Any], Any], make: Callable[[], Any], words: str) -> None:
    """On every rank, in words, without harm to the group, before anybody waits for anybody."""

    def body(comm: Any) -> float:
        with pytest.raises(UsageError, match=f"(x|out) on rank {comm.rank}: .*{words}"):
            call(comm, make())
        return float(comm.allreduce(np.ones(1))[0])

    assert run_threads(WORLD_SIZE, body) == [float(WORLD_SIZE)] * WORLD_SIZE
