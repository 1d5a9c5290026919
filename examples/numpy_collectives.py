"""The collectives on NumPy arrays, without torch, under whatever has started the ranks.

    bash examples/launch/environment.sh examples/numpy_collectives.py

or openmpi.sh, mpich.sh, slurm.sh, torchrun.sh in its place: the program is the same.
"""

import sys

import numpy as np

import allreduce


class Shelf:
    """Stands for any library's array: all that allreduce asks of it is DLPack, in host memory."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def __dlpack__(self, **options: object) -> object:
        return self._values.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._values.__dlpack_device__()


with allreduce.init(timeout=60) as comm:  # who and where we are is in the launcher's variables
    rank, ranks = comm.rank, comm.world_size
    everyone = np.arange(ranks)

    x = np.full(1000, float(rank))
    comm.allreduce(x)  # in place; op="avg", "min", "max", "prod", ... as well
    np.testing.assert_array_equal(x, everyone.sum())

    work = comm.allreduce(np.full(1000, rank), op="max", async_op=True)
    gathered = comm.allgather(np.array([rank, rank**2]))  # meanwhile
    np.testing.assert_array_equal(gathered, np.stack([everyone, everyone**2], 1).ravel())
    np.testing.assert_array_equal(work.wait(), ranks - 1)

    mine = comm.reduce_scatter(np.arange(2.0 * ranks))  # each rank gets two of the sums
    np.testing.assert_array_equal(mine, [2 * rank * ranks, (2 * rank + 1) * ranks])

    y = np.full((3, 3), rank)
    comm.broadcast(y, root=ranks - 1)
    np.testing.assert_array_equal(y, ranks - 1)

    neighbours = comm.split(color=comm.node)  # a communicator for each node
    with neighbours:
        total = neighbours.allreduce(np.array([rank]))
    here = [other for other, node in enumerate(comm.node_of_rank) if node == comm.node]
    assert total[0] == sum(here)

    values = np.full(8, 1.0, np.float32)
    comm.allreduce(Shelf(values))  # reduces the memory behind it
    np.testing.assert_array_equal(values, ranks)

    sys.stdout.write(
        f"rank {rank} of {ranks}, on node {comm.node} of {comm.num_nodes}: all results are right\n"
    )
