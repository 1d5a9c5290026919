"""An allreduce between Dask workers: two processes of a LocalCluster, a rank in each.

    pip install 'hier-allreduce[clients]'
    python3 examples/engines/dask_allreduce.py

With --kill rank 1 kills itself before its second call. Rank 0 then gets a PeerError.
"""

import os
import secrets
import signal
import socket
import sys

import dask
import numpy as np
from distributed import Client, LocalCluster, wait

import allreduce


def unused_port() -> int:
    """Returns a port of the worker's host, for the store of rank 0."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return listener.getsockname()[1]


def work(rank: int, ranks: int, host: str, port: int, kill: bool) -> str:
    """Sums an array over all workers, on each of them."""
    with allreduce.init(
        rank=rank, world_size=ranks, master_addr=host, master_port=port, timeout=60
    ) as comm:
        x = np.full(1000, float(rank + 1))
        comm.allreduce(x)  # in place
        if kill and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        comm.allreduce(x, op="max")
        return f"rank {rank} of {ranks}: {x[0]:g}"


if __name__ == "__main__":  # a LocalCluster's workers import this file
    kill = "--kill" in sys.argv
    # A task whose worker has died must not run again alone: the other ranks have ended, too.
    dask.config.set({"distributed.scheduler.allowed-failures": 0})
    secret = os.environ.get("ALLREDUCE_SECRET") or secrets.token_hex(16)
    workers_have = {"ALLREDUCE_SECRET": secret, "ALLREDUCE_REQUIRE_AUTH": "1"}
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, env=workers_have) as cluster,
        Client(cluster) as client,
    ):
        workers = sorted(client.scheduler_info()["workers"])
        host = workers[0].split("//")[1].rsplit(":", 1)[0]
        port = client.submit(unused_port, workers=workers[0]).result()
        jobs = [
            client.submit(work, rank, len(workers), host, port, kill, workers=worker, pure=False)
            for rank, worker in enumerate(workers)
        ]
        wait(jobs)
        for job in jobs:
            print(job.result() if job.status == "finished" else repr(job.exception()))
