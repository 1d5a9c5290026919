"""How many operations an allreduce of GPU memory enqueues: with CUDA each is a driver's call.

The caller's thread makes them, which is the one that runs backprop: they are counted so that
their number grows by intention alone.
"""

import numpy as np
import pytest
from device_memory import a_device
from group_cases import nodes, size
from worlds import run_threads

from allreduce import _C

COUNT = 25 * 2**20 // 4  # float32: 7 pieces
PIECES = 7
OTHERS = 6  # of a call: an event, two waits for it; at the end a flag, an event, a wait


@pytest.fixture(autouse=True)
def cpu_runtime(monkeypatch):
    monkeypatch.setenv("ALLREDUCE_DEVICE_RUNTIME", "cpu")


def enqueued(layout, stage):
    """By one rank, for one call of 25 MiB in steady state."""
    world_size, calls = size(layout), []

    def body(comm):
        with a_device() as device:
            x = device.array(np.ones(COUNT, np.float32))
            comm.allreduce(x)
            device.synchronize()
            comm.barrier()
            before = _C.cpu_num_enqueued()
            comm.barrier()
            comm.allreduce(x)
            comm.barrier()
            calls.append(_C.cpu_num_enqueued() - before)
            comm.barrier()
        return comm.device_stage

    assert run_threads(world_size, body, nodes=nodes(layout)) == [stage] * world_size
    assert len(set(calls)) == 1
    return calls[0] / world_size


@pytest.mark.parametrize("layout", ["1x2", "1x3", "1x4"])
def test_calls_of_a_node_alone(layout):
    local = size(layout)
    scatter = 2 * (local - 1) + 4  # waits for the others, a wait, a copy, a flag, a sum
    gather = 2 * local + 3  # each rank's flag and copy; two flags, an event
    chain = 2  # a flag and a wait for it, of the host
    assert enqueued(layout, "peer") <= PIECES * (scatter + gather + chain) + OTHERS


def test_calls_with_a_network():
    scatter, gather = 2 + 4, 4 + 3
    chain = 2 + 3  # a copy and a flag; two waits and a copy
    assert enqueued("2x2", "peer") <= PIECES * (scatter + gather + chain) + OTHERS


def test_calls_through_the_host(monkeypatch):
    monkeypatch.setenv("ALLREDUCE_DEVICE_LOCAL", "host")
    chain = 2 + 3
    assert enqueued("1x2", "host: ALLREDUCE_DEVICE_LOCAL=host asks for it") <= 50 * chain + OTHERS
