"""The local stage of a node's devices, on the CPU runtime: streams that wait for each other."""

import threading
import time

import numpy as np
import pytest
from device_memory import a_device
from group_cases import nodes, size, whole_numbers
from worlds import SANITIZED, processes, run_processes, run_threads

from allreduce import _C
from allreduce.errors import AbortedError, Error

LAYOUTS = ("1x2", "1x3", "2x2", "1+2", "3+1+2", "interleaved")
COUNTS = (65_537, 1_048_576, 6_000_011)  # just above the host's path; a slot; more than all slots


@pytest.fixture(autouse=True)
def cpu_runtime(monkeypatch):
    monkeypatch.setenv("ALLREDUCE_DEVICE_RUNTIME", "cpu")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sums_of_every_size(layout):
    world_size = size(layout)

    def body(comm):
        with a_device() as device:
            for count in COUNTS:
                inputs = whole_numbers("float32", "sum", count, world_size)
                x = device.array(inputs[comm.rank])
                comm.allreduce(x)
                np.testing.assert_array_equal(device.read(x), sum(inputs))
            return comm.device_stage

    assert run_threads(world_size, body, nodes=nodes(layout)) == ["peer"] * world_size


@pytest.mark.parametrize("layout", ["1x3", "2x2"])
@pytest.mark.parametrize(
    ("dtype", "op"), [("float64", "avg"), ("float16", "max"), ("int8", "bxor")]
)
def test_dtypes_and_operations(layout, dtype, op):
    world_size = size(layout)
    reference = {"avg": np.mean, "max": np.max, "bxor": np.bitwise_xor.reduce}[op]

    def body(comm):
        inputs = whole_numbers(dtype, op, 400_003, world_size)
        with a_device() as device:
            x = device.array(inputs[comm.rank])
            comm.allreduce(x, op)
            np.testing.assert_array_equal(device.read(x), reference(inputs, axis=0).astype(dtype))
        assert comm.device_stage == "peer"

    run_threads(world_size, body, nodes=nodes(layout))


def test_what_another_rank_has_let_go_is_no_result(monkeypatch):
    # A rank that has failed lets the streams of all go on, perhaps before its word has come.
    stages = {}
    make = _C.MappedPeerStage

    def kept(**arguments):
        stages[arguments["local_rank"]] = made = make(**arguments)
        return made

    kept.counter_bytes = make.counter_bytes
    monkeypatch.setattr(_C, "MappedPeerStage", kept)
    looked = threading.Event()

    def body(comm):
        with a_device() as device:
            x = device.array(np.ones(1_000_000, np.float32))
            comm.allreduce(x)
            device.synchronize()
            comm.barrier()
            stage = stages.pop(comm.rank)  # held no longer than the group
            if comm.rank == 1:
                assert looked.wait(60)
                return
            work = comm.allreduce(x, async_op=True)
            if comm.rank == 0:
                stage.abandon()
                assert looked.wait(60)
                comm.abort("on purpose")
            else:
                work.wait()
                device.synchronize()
                time.sleep(0.3)
                done = work.done()
                looked.set()
                assert not done
            while not work.done():
                time.sleep(0.001)
            with pytest.raises(AbortedError, match="on purpose"):
                work.wait()

    run_threads(3, body)


@pytest.mark.parametrize("layout", ["1x3", "2x2"])
def test_the_bits_are_those_of_the_host_stage(layout):
    def body(comm):
        rng = np.random.default_rng(comm.rank)
        values = rng.standard_normal(300_001).astype(np.float32)
        with a_device() as device:
            x = device.array(values)
            comm.allreduce(x, algo="recursive_doubling")
            assert (
                device.read(x).tobytes()
                == comm.allreduce(values.copy(), algo="recursive_doubling").tobytes()
            )
        assert comm.device_stage == "peer"

    run_threads(size(layout), body, nodes=nodes(layout))


def test_calls_in_flight_with_others_through_the_host():
    def body(comm):
        with a_device() as device:
            device.busy()
            counts = (300_000, 100, 2_000_000, 70_000, 9_000_000, 5)
            arrays = [device.array(np.full(n, comm.rank, np.float32)) for n in counts]
            works = [comm.allreduce(x, async_op=True) for x in arrays]
            host = comm.allreduce(np.ones(1000))
            for work in works:
                work.wait()
            assert all((device.read(x) == 6).all() for x in arrays)
            assert (host == 4).all()

    run_threads(4, body, nodes=[0, 0, 1, 1])


def test_the_host_is_asked_for(monkeypatch):
    monkeypatch.setenv("ALLREDUCE_DEVICE_LOCAL", "host")

    def body(comm):
        with a_device() as device:
            x = device.array(np.ones(300_000, np.float32))
            comm.allreduce(x)
            assert (device.read(x) == 2).all()
        return comm.device_stage

    assert all("asks for it" in stage for stage in run_threads(2, body))


def large(comm, device, values):
    x = device.array(values)
    comm.allreduce(x)
    return device.read(x)


# In "2x2" the streams of ranks 2 and 3 are let go at once, and race from then on, as they must.
@pytest.mark.parametrize("layout", ["1x2"] if SANITIZED else ["1x2", "2x2"])
def test_a_rank_that_aborts_lets_the_streams_of_all_go_on(layout):
    def body(comm):
        with a_device() as device:
            values = np.ones(9_000_000, np.float32)
            assert (large(comm, device, values) == comm.world_size).all()
            x = device.array(values)
            if comm.rank == 0:
                time.sleep(0.2)
                comm.abort("on purpose")
            else:
                comm.allreduce(x)
            device.synchronize()
            with pytest.raises(AbortedError, match="on purpose"):
                comm.barrier()

    run_threads(size(layout), body, nodes=nodes(layout))


def test_a_rank_that_stays_away_is_a_timeout():
    def body(comm):
        with a_device() as device:
            large(comm, device, np.ones(300_000, np.float32))
            if comm.rank == 1:
                time.sleep(1)
                return ""
            x = device.array(np.ones(300_000, np.float32))
            comm.allreduce(x, timeout=0.3)
            device.synchronize()
            with pytest.raises(AbortedError) as caught:
                comm.barrier()
            return str(caught.value)

    assert "timed out after 0.3" in run_threads(2, body)[0]


def meet_for_a_while(comm):
    for _ in range(100):
        comm.barrier(timeout=5)
        time.sleep(0.01)


def test_ranks_that_call_different_sizes_hear_of_it():
    def body(comm):
        with a_device() as device:
            large(comm, device, np.ones(300_000, np.float32))
            x = device.array(np.ones(400_000 + comm.rank, np.float32))
            comm.allreduce(x)
            device.synchronize()
            with pytest.raises(Error, match=r"ranks disagree|has failed"):
                meet_for_a_while(comm)

    run_threads(2, body)


def sum_large(comm):
    from device_memory import a_device

    with a_device() as device:
        x = device.array(np.full(3_000_001, comm.rank + 1.0, np.float32))
        comm.allreduce(x)
        return [comm.device_stage, float(np.unique(device.read(x)).item())]


@pytest.mark.skipif(SANITIZED, reason="processes")
@pytest.mark.parametrize("layout", ["1x2", "2x2"])
def test_processes_map_each_others_memory(tmp_path, layout):
    world_size = size(layout)
    outcomes = run_processes(world_size, sum_large, tmp_path, nodes=nodes(layout))
    total = world_size * (world_size + 1) / 2
    assert [outcome.result for outcome in outcomes] == [["peer", total]] * world_size


def sum_for_ever(comm):
    from device_memory import a_device
    from worlds import tell

    with a_device() as device:
        x = device.array(np.ones(1_000_000, np.float32))
        for i in range(10**9):
            comm.allreduce(x, "max")
            device.synchronize()
            if i == 2:
                tell("running")


@pytest.mark.skipif(SANITIZED, reason="processes")
@pytest.mark.parametrize("layout", ["1x2", "1x3", "2x2"])
def test_survivors_of_kill_9_leave_their_streams(tmp_path, layout):
    world_size = size(layout)
    with processes(world_size, sum_for_ever, tmp_path, nodes=nodes(layout)) as world:
        world.wait_for("running")
        at = world.kill(1)
        survivors = [rank for rank in range(world_size) if rank != 1]
        outcomes = world.join(survivors)
    for outcome in outcomes:
        assert outcome.error in ("PeerError", "AbortedError"), outcome
        assert "rank 1" in outcome.text
        assert outcome.at - at < 8


def limit_after_a_call(comm) -> int:
    """Up to how many bytes the host sums, once there is a local stage."""
    with a_device() as device:
        x = device.array(np.full(100_000, comm.rank + 1, np.float32))
        comm.allreduce(x)
        assert (device.read(x) == 3).all()
    return comm._group.host_path_bytes


def test_how_far_up_the_host_sums_is_measured_where_anything_is():
    assert run_threads(2, limit_after_a_call) == [256 << 10] * 2
    chosen = run_threads(2, limit_after_a_call, measure=True)
    assert len(set(chosen)) == 1
    assert chosen[0] in (0, 1 << 16, 1 << 18, 1 << 20, 1 << 22)


def test_the_host_sums_as_far_up_as_it_is_faster(monkeypatch):
    sizes = {0: 0, 1: 0}  # raced so far, by rank

    def time_alternating(comm, calls, effort):
        for call in calls.values():
            call()
        sizes[comm.rank] += 1
        return {"host": 2.0, "devices": 3.0 if sizes[comm.rank] <= 2 else 1.0}, 0.0

    monkeypatch.setattr(
        "allreduce.communicator.host_path_threshold.time_alternating", time_alternating
    )
    assert run_threads(2, limit_after_a_call, measure=True) == [1 << 18] * 2
