"""An allreduce in a job of submitit: on SLURM where srun is here, else in two local processes.

    pip install 'hier-allreduce[clients]'
    python3 examples/engines/submitit_allreduce.py

With --kill rank 1 kills itself before its second call. Rank 0 then gets a PeerError.
"""

import os
import secrets
import signal
import sys
import tempfile

import numpy as np
import submitit

import allreduce


def work(kill: bool) -> str:
    """Sums an array over all tasks of the job, in each task."""
    job = submitit.helpers.TorchDistributedEnvironment()
    job.export()  # RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT: torch reads them, too
    with allreduce.init(timeout=60) as comm:
        x = np.full(1000, comm.rank + 1.0)
        comm.allreduce(x)  # in place
        if kill and comm.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        comm.allreduce(x, op="max")
        return f"rank {comm.rank} of {comm.world_size}: {x[0]:g}"


with tempfile.TemporaryDirectory(dir=".") as folder:  # on SLURM: where all nodes can write
    # The job inherits the environment of this process: sbatch hands it on, too.
    os.environ.setdefault("ALLREDUCE_SECRET", secrets.token_hex(16))
    os.environ["ALLREDUCE_REQUIRE_AUTH"] = "1"
    executor = submitit.AutoExecutor(folder)
    executor.update_parameters(tasks_per_node=2, timeout_min=5)
    job = executor.submit(work, "--kill" in sys.argv)
    for task in (job.task(0), job.task(1)):
        print(task.exception() or task.result())
