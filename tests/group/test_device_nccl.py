"""NCCL as the local stage, on the CPU runtime and a fake libnccl.so.2 whose ranks are threads."""

import ctypes
import time
from pathlib import Path

import numpy as np
import pytest
from device_memory import a_device
from fake_nccl import compile_fake
from group_cases import nodes, size, whole_numbers
from worlds import run_threads

from allreduce import _C
from allreduce.commands.native_build import csrc_dir
from allreduce.cuda import nccl
from allreduce.errors import AbortedError

COUNTS = (65_537, 1_048_576, 6_000_011)


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    core = Path(_C.__file__)
    flags = (
        "-DCPU_STREAMS",
        "-Wl,--no-as-needed",
        f"-I{csrc_dir()}",
        f"-L{core.parent}",
        f"-l:{core.name}",
    )
    return compile_fake(tmp_path_factory.mktemp("nccl"), soname="libfake.so", flags=flags)


@pytest.fixture(autouse=True)
def chosen(monkeypatch, fake):
    monkeypatch.setenv("ALLREDUCE_DEVICE_RUNTIME", "cpu")
    monkeypatch.setenv("ALLREDUCE_DEVICE_LOCAL", "nccl")
    monkeypatch.setenv("NCCL_LIB", str(fake))
    nccl.library.cache_clear()
    loaded = ctypes.CDLL(str(fake))
    loaded.fake_violation.restype = ctypes.c_char_p
    loaded.fake_violation()
    yield
    nccl.library.cache_clear()
    assert loaded.fake_violation() == b""


@pytest.mark.parametrize("layout", ["1x2", "1x3", "2x2"])
@pytest.mark.parametrize("op", ["sum", "avg"])
def test_results_of_every_size(layout, op):
    world_size = size(layout)

    def body(comm):
        with a_device() as device:
            for count in COUNTS:
                inputs = whole_numbers("float32", op, count, world_size)
                x = device.array(inputs[comm.rank])
                comm.allreduce(x, op)
                expected = sum(inputs) / (world_size if op == "avg" else 1)
                np.testing.assert_array_equal(device.read(x), expected)
            return comm.device_stage

    assert run_threads(world_size, body, nodes=nodes(layout)) == ["nccl"] * world_size


@pytest.mark.parametrize(
    ("layout", "kinds"), [("1x2", {"all_reduce"}), ("2x2", {"reduce_scatter", "all_gather"})]
)
def test_a_node_alone_takes_one_call_of_nccl(fake, layout, kinds):
    loaded = ctypes.CDLL(str(fake))
    known = ("all_reduce", "reduce_scatter", "all_gather")
    before = [loaded.fake_calls(kind.encode()) for kind in known]
    assert len(before) == 3

    def body(comm):
        with a_device() as device:
            x = device.array(np.ones(6_000_011, np.float32))
            comm.allreduce(x)
            device.synchronize()

    run_threads(size(layout), body, nodes=nodes(layout))
    counts = {kind: loaded.fake_calls(kind.encode()) for kind in known}
    assert {kind for kind, count in counts.items() if count} == kinds
    if kinds == {"all_reduce"}:
        assert counts["all_reduce"] == size(layout)


def test_it_is_joined_on_the_gpu_of_the_call(fake):
    """Not on the one that is current in whichever thread makes the first call."""
    loaded = ctypes.CDLL(str(fake))
    library = nccl.library()
    runtime = _C.cpu_device_runtime()
    unique_id = _C.nccl_unique_id(library)
    stage = _C.NcclStage(
        library=library, runtime=runtime, device=5, local_size=1, local_rank=0,
        unique_id=unique_id, timeout=60,
    )  # fmt: skip
    assert loaded.fake_last_device() == 5
    del stage


def test_what_nccl_does_not_have_goes_through_the_host():
    def body(comm):
        with a_device() as device:
            x = device.array(np.full(300_000, 1 << comm.rank, np.int16))
            comm.allreduce(x, "bor")
            assert (device.read(x) == 3).all()
        return comm.device_stage

    assert run_threads(2, body) == ["nccl"] * 2


def test_uneven_nodes_go_through_the_host():
    def body(comm):
        with a_device() as device:
            x = device.array(np.ones(300_000, np.float32))
            comm.allreduce(x)
            assert (device.read(x) == 3).all()

    run_threads(3, body, nodes=nodes("1+2"))


def test_a_library_that_does_not_load_is_a_reason(monkeypatch):
    monkeypatch.setenv("NCCL_LIB", "/nowhere/libnccl.so.2")

    def body(comm):
        with a_device() as device:
            x = device.array(np.ones(300_000, np.float32))
            comm.allreduce(x)
            assert (device.read(x) == 2).all()
        return comm.device_stage

    assert all(stage.startswith("host: nccl: ") for stage in run_threads(2, body))


def test_an_abort_ends_streams_that_are_in_nccl():
    def body(comm):
        with a_device() as device:
            x = device.array(np.ones(3_000_000, np.float32))
            comm.allreduce(x)
            device.synchronize()
            if comm.rank == 0:
                time.sleep(0.2)
                comm.abort("on purpose")
            else:
                comm.allreduce(x)  # it waits for rank 0 in NCCL
            device.synchronize()
            with pytest.raises(AbortedError, match="on purpose"):
                comm.barrier()

    run_threads(2, body)
