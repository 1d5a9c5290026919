"""Collectives on device memory, on the CPU runtime: the same results, in stream order, no hang."""

import threading
import time
from contextlib import suppress

import numpy as np
import pytest
from device_memory import a_device
from group_cases import nodes, size, whole_numbers
from worlds import SANITIZED, run_processes, run_threads

from allreduce import _C
from allreduce.errors import AbortedError, Error, UsageError

LAYOUTS = ("1x1", "1x2", "1x3", "2x1", "3x1", "2x2", "3+1+2")
COUNTS = (0, 1, 7, 3000, 100_003)


@pytest.fixture(autouse=True)
def cpu_runtime(monkeypatch):
    monkeypatch.setenv("ALLREDUCE_DEVICE_RUNTIME", "cpu")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("local", ["rs_ag", "none"])
def test_an_allreduce_in_stream_order(layout, local):
    world_size = size(layout)

    def body(comm):
        with a_device() as device:
            for count in COUNTS:
                inputs = whole_numbers("float32", "sum", count, world_size)
                x = device.array(inputs[comm.rank])
                assert comm.allreduce(x) is x
                np.testing.assert_array_equal(device.read(x), sum(inputs))

    run_threads(world_size, body, nodes=nodes(layout), local=local)


def test_memory_that_is_not_aligned_moves_and_is_not_reduced():
    def body(comm):
        with a_device() as device:
            x = device.array(np.full(1000, comm.rank, np.float32), offset=1)
            words = f"on rank {comm.rank}: an array in GPU memory does not begin at a multiple"
            for options in ({}, {"async_op": True}):
                with pytest.raises(UsageError, match=words):
                    comm.allreduce(x, **options)
            comm.broadcast(x, root=1)
            assert (device.read(x) == 1).all()

    run_threads(2, body)


@pytest.mark.parametrize("layout", ["2x1", "2x2"])
@pytest.mark.parametrize(
    ("dtype", "op"), [("float64", "avg"), ("float16", "max"), ("int32", "sum")]
)
def test_dtypes_and_operations(layout, dtype, op):
    world_size = size(layout)
    reference = {"avg": np.mean, "max": np.max, "sum": np.sum}[op]

    def body(comm):
        inputs = whole_numbers(dtype, op, 5000, world_size)
        with a_device() as device:
            x = device.array(inputs[comm.rank])
            comm.allreduce(x, op)
            np.testing.assert_array_equal(device.read(x), reference(inputs, axis=0).astype(dtype))

    run_threads(world_size, body, nodes=nodes(layout))


@pytest.mark.parametrize("layout", ["2x1", "2x2", "1x2"])
def test_a_large_buffer_passes_in_pieces(layout):
    count = 5_000_011  # five pieces of 4 MiB, where no local stage cuts smaller ones

    def body(comm):
        with a_device() as device:
            device.busy()
            x = device.array(np.arange(count, dtype=np.float32) + comm.rank)
            comm.allreduce(x, algo="ring")
            n = comm.world_size
            expected = np.arange(count, dtype=np.float32) * n + n * (n - 1) / 2
            assert (
                np.abs(device.read(x) / np.maximum(expected, 1) - expected.clip(max=1)).max() < 1e-6
            )

    run_threads(size(layout), body, nodes=nodes(layout))


def test_many_calls_in_flight_between_calls_on_host_memory():
    def body(comm):
        with a_device() as device:
            device.busy()
            arrays = [device.array(np.full(1000 + i, float(i))) for i in range(20)]
            works = [comm.allreduce(x, async_op=True) for x in arrays]
            host = [comm.allreduce(np.ones(10), async_op=True) for _ in range(3)]
            for work, x in zip(works, arrays, strict=True):
                assert work.wait() is x
            for i, x in enumerate(arrays):
                assert (device.read(x) == 4 * i).all()
            until = time.monotonic() + 5  # the host looks at the streams now and then
            while not all(work.done() for work in works):
                assert time.monotonic() < until
            assert all((work.wait() == 4).all() for work in host)

    run_threads(4, body, nodes=[0, 0, 1, 1])


def test_results_stay_apart_when_an_array_is_used_again_at_once():
    def body(comm):
        with a_device() as device:
            x = device.array(np.ones(300_000, np.float32))
            for _ in range(5):
                device.busy(10)
                comm.allreduce(x)
            assert (device.read(x) == 2.0**5).all()

    run_threads(2, body, nodes=[0, 1])


@pytest.mark.parametrize("layout", ["1x3", "3x1", "2x2"])
def test_broadcast_and_reduce(layout):
    def body(comm):
        with a_device() as device:
            x = device.array(np.full(5000, comm.rank))
            comm.broadcast(x, root=1)
            assert (device.read(x) == 1).all()

    run_threads(size(layout), body, nodes=nodes(layout))


class Capsule:
    """An array in device memory, known by DLPack alone."""

    def __init__(self, array, device_type=2):
        self.array = array
        self.device_type = device_type

    def __dlpack__(self, stream):
        assert stream == 1, "CUDA's default stream"
        return self.array.__dlpack__()

    def __dlpack_device__(self):
        return (self.device_type, 0)


def test_dlpack_of_device_memory():
    def body(comm):
        memory = np.full((3, 1000), comm.rank + 1.0)
        # Not on both: ranks that are threads would share the default stream, and wait in it.
        comm.allreduce(Capsule(memory) if comm.rank else memory)
        _C.cpu_device_runtime().synchronize(0, 1)
        assert (memory == 3).all()

    run_threads(2, body)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strides": (16,)}, "is not contiguous"),
        ({"typestr": ">f8"}, "foreign byte order"),
        ({"typestr": "<c16"}, "dtype complex128: not supported"),
        ({"data": (4096, True)}, "is read-only"),
        ({"mask": object()}, "masked"),
        ({"stream": 0}, "stream 0"),
        ({"shape": None}, "cannot be read"),
    ],
)
def test_an_interface_that_cannot_work(change, message):
    class Array:
        __cuda_array_interface__ = {
            "shape": (4,),
            "typestr": "<f8",
            "data": (4096, False),
            "version": 3,
            "strides": None,
        } | change

    def body(comm):
        with pytest.raises(UsageError, match=message):
            comm.allreduce(Array())

    run_threads(1, body)


def test_strided_capsules_and_other_devices_are_refused():
    def body(comm):
        with pytest.raises(UsageError, match="not contiguous"):
            comm.allreduce(Capsule(np.ones((4, 4))[:, ::2]))
        with pytest.raises(UsageError, match="device type 10"):
            comm.allreduce(Capsule(np.ones(4), device_type=10))

    run_threads(1, body)


def test_messages_are_refused():
    def body(comm):
        with (
            a_device() as device,
            pytest.raises(UsageError, match="messages go between host arrays"),
        ):
            comm.send(device.array(np.ones(4)), 1 - comm.rank)

    run_threads(2, body)


@pytest.mark.parametrize("layout", ["2x1", "1x2", "2x2"])
def test_a_rank_that_aborts_lets_the_streams_of_all_go_on(layout):
    def body(comm):
        with a_device() as device:
            x = device.array(np.ones(100_000, np.float32))
            if comm.rank == 0:
                comm.abort("on purpose")
            else:
                with suppress(AbortedError):  # it may have heard of it
                    comm.allreduce(x)
                device.synchronize()
                with pytest.raises(AbortedError, match="on purpose"):
                    comm.barrier()
            device.synchronize()

    run_threads(size(layout), body, nodes=nodes(layout))


def test_a_call_that_fails_leaves_the_memory_alone_behind_its_stream():
    under_way = threading.Event()

    def body(comm):
        with a_device() as device:
            if comm.rank == 0:
                assert under_way.wait(60)
                comm.abort("on purpose")
                return True
            x = device.array(np.ones(8_000_000, np.float32))
            held = device.hold()
            work = comm.allreduce(x, async_op=True)
            under_way.set()
            while not work.done():
                time.sleep(0.001)
            with pytest.raises(AbortedError, match="on purpose"):
                work.wait()
            held[0] = 1
            device.synchronize()
            x.memory[:] = 7  # as whoever gets this memory next
            time.sleep(0.3)
            return (x.memory == 7).all()

    assert run_threads(2, body, nodes=[0, 1])[1]


def test_a_rank_that_stays_away_is_a_timeout_and_leaves_nan():
    def body(comm):
        if comm.rank == 1:
            return None
        with a_device() as device:
            x = device.array(np.ones(1000, np.float32))
            work = comm.allreduce(x, async_op=True, timeout=0.3)
            work.wait()
            left = device.read(x)
            with pytest.raises(AbortedError, match=r"this group has failed.*rank 1"):
                comm.barrier()
            return np.isnan(left).all()

    assert run_threads(2, body, nodes=[0, 1])[0]


def meet_for_a_while(comm):
    for _ in range(1000):
        comm.barrier()
        time.sleep(0.01)


def test_a_stream_that_comes_late_is_named_in_the_timeout():
    def body(comm):
        with a_device() as device:
            held = device.hold()
            if comm.rank:
                held[0] = 1
            x = device.array(np.ones(1000, np.float32))
            try:
                comm.allreduce(x, async_op=True, timeout=30 if comm.rank else 0.2)
                with pytest.raises(Error) as caught:
                    meet_for_a_while(comm)  # it shares nothing with the call that is late
            finally:
                held[0] = 1
            return str(caught.value)

    texts = run_threads(2, body, nodes=[0, 1])
    assert any("copy from the device" in text for text in texts), texts


def test_without_a_gpu_the_error_says_why(monkeypatch):
    monkeypatch.delenv("ALLREDUCE_DEVICE_RUNTIME")

    def body(comm):
        with a_device() as device, pytest.raises(UsageError, match="no GPU can be used"):
            comm.allreduce(device.array(np.ones(4)))

    run_threads(1, body)


def allreduce_some(comm):
    from device_memory import a_device

    with a_device() as device:
        arrays = [device.array(np.full(count, comm.rank + 1.0)) for count in (5, 700_000, 3000)]
        works = [comm.allreduce(x, async_op=True) for x in arrays]
        for work in works:
            work.wait()
        return [float(np.unique(device.read(x)).item()) for x in arrays]


@pytest.mark.skipif(SANITIZED, reason="processes")
@pytest.mark.parametrize("layout", ["2x1", "1x2"])
def test_callbacks_in_the_place_of_memory_operations(tmp_path, monkeypatch, layout):
    # Processes: all ranks of one would share the thread of its callbacks.
    monkeypatch.setenv("ALLREDUCE_DEVICE_RUNTIME", "cpu-callbacks")
    outcomes = run_processes(size(layout), allreduce_some, tmp_path, nodes=nodes(layout))
    assert [outcome.result for outcome in outcomes] == [[3.0] * 3] * 2
