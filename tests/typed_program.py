"""What type checkers know of a user's program: `make types` reads this file, nothing runs it.

Each `type: ignore` is an error that must be found: mypy and pyright refuse one that is not needed.
"""

from typing import assert_type

import numpy as np
import numpy.typing as npt

import allreduce
from allreduce import Communicator, Work
from allreduce.schedules import Schedule

Floats = npt.NDArray[np.float32]


def program(x: Floats, schedule: Schedule) -> None:
    with allreduce.init(timeout=60, nodes=2, local="rs_ag") as comm:
        assert_type(comm, Communicator)
        assert_type(comm.rank, int)
        assert_type(comm.allreduce(x), Floats)
        assert_type(comm.allreduce(x, "max", schedule), Floats)
        assert_type(comm.allreduce(x, async_op=True), Work)
        assert_type(comm.broadcast(x, root=1), Floats)
        assert_type(comm.reduce_scatter(x, "avg"), Floats)
        assert_type(comm.split(0), Communicator | None)
        comm.allreduce(x, "mean")  # type: ignore[call-overload]
        comm.symmetric_empty(3, "float31")  # type: ignore[arg-type]
        comm.all_reduce(x)  # type: ignore[attr-defined]
    allreduce.init(nonsense=3)  # type: ignore[call-arg]
    allreduce.init(local="ring")  # type: ignore[arg-type]
