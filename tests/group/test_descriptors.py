"""How many descriptors a rank may have, and how many it asks the kernel about at once."""

import os
import resource
import socket
import time

import numpy as np
import pytest
from worlds import SANITIZED, processes

pytestmark = pytest.mark.skipif(SANITIZED, reason="processes")

RANKS, LANES = 8, 4
BOTH_WAYS = 2 * LANES * (RANKS - 1)  # directions of sockets for collectives


def wait_in_all_lanes(member) -> list:
    from pathlib import Path

    from allreduce.communicator import options

    connect = options.connect

    def connect_narrowly(*arguments, **asked):
        connections = connect(*arguments, **asked)
        for fd in (fd for fds in connections.data.values() for fd in fds):
            with socket.socket(fileno=os.dup(fd)) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        return connections

    options.connect = connect_narrowly
    comm = member.connect(lanes=4)
    arrays = [np.full(1 << 20, comm.rank + lane) for lane in range(4)]
    limit = max(int(fd.name) for fd in Path("/proc/self/fd").iterdir()) + 4
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    comm.barrier()
    if comm.rank > 0:
        time.sleep(1.0)  # rank 0 waits, and can neither send nor receive
    works = [comm.allreduce(x, algo="direct", async_op=True) for x in arrays]
    for work in works:
        work.wait()
    comm.barrier()
    return [limit, *(int(x[-1]) for x in arrays)]


def test_a_rank_that_waits_for_everybody_polls_no_more_than_it_has_open(tmp_path):
    with processes(RANKS, wait_in_all_lanes, tmp_path, connect=False, nodes=RANKS) as world:
        outcomes = world.join()
    for outcome in outcomes:
        assert outcome.error == "", outcome
        limit, *sums = outcome.result
        assert limit < BOTH_WAYS  # else this test shows nothing
        assert sums == [RANKS * (RANKS - 1) // 2 + RANKS * lane for lane in range(LANES)]


def start_with_few(member) -> list:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (24, hard))
    comm = member.connect()
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return [soft == hard, float(comm.allreduce(np.ones(3))[0])]


def test_a_soft_limit_that_is_too_low_is_raised_to_the_hard_one(tmp_path):
    with processes(4, start_with_few, tmp_path, connect=False, nodes=4) as world:
        outcomes = world.join()
    assert [(o.error, o.result) for o in outcomes] == [("", [True, 4.0])] * 4, outcomes


def start_with_enough(member) -> bool:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
    member.connect()
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 128


def test_a_soft_limit_that_suffices_stays(tmp_path):
    with processes(2, start_with_enough, tmp_path, connect=False, nodes=2) as world:
        outcomes = world.join()
    assert [o.result for o in outcomes] == [True, True], outcomes
