"""The communicator on a fake NCCL with threads as ranks: results, deadlines, aborts, errors."""

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_nccl import compile_fake

from allreduce import _C, errors

pytestmark = pytest.mark.timeout(240)

Communicator = _C.NcclCommunicator
Call = _C.NcclCall


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_fake(tmp_path_factory.mktemp("fake"), soname="libfake_nccl.so")


@pytest.fixture
def library(path: Path) -> Iterator[_C.NcclLibrary]:
    yield _C.load_nccl(str(path))
    loaded = ctypes.CDLL(str(path))
    deadline = time.monotonic() + 30  # for threads that nobody waits for any more
    while loaded.fake_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert loaded.fake_alive() == 0, "a communicator was left behind"


def on_ranks(
    library: _C.NcclLibrary, size: int, act: Callable[[Any, int], Any], timeout: float = 60
) -> list[Any]:
    """What `act(communicator, rank)` returns or raises on each of `size` threads."""
    unique_id = _C.nccl_unique_id(library)

    def run(rank: int) -> Any:
        try:
            comm = Communicator(library, unique_id, rank, size, timeout=timeout)
            return act(comm, rank)
        except errors.Error as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))


def start_for_ever(comm: Any, call: Any) -> None:
    while True:
        comm.start(call)


def check_for_ever(comm: Any) -> None:
    while True:
        comm.check()


def make(rng: np.random.Generator, size: int, count: int) -> list[np.ndarray]:
    return [rng.integers(-99, 99, count).astype("f4") for _ in range(size)]


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_reduce_scatter_and_all_gather_make_an_allreduce(
    library: _C.NcclLibrary, rng: np.random.Generator, size: int
) -> None:
    count = 37
    data = make(rng, size, size * count)
    expected = np.sum(data, axis=0)

    def act(comm: Any, rank: int) -> None:
        buffer = data[rank]
        shard = buffer.ctypes.data + 4 * count * rank
        comm.start(Call.reduce_scatter(buffer.ctypes.data, shard, count, "float32"))
        comm.start(Call.all_gather(shard, buffer.ctypes.data, count, "float32"))
        comm.check()
        comm.close()
        np.testing.assert_array_equal(buffer, expected)

    assert on_ranks(library, size, act) == [None] * size


def test_an_allreduce_in_place(library: _C.NcclLibrary, rng: np.random.Generator) -> None:
    data = make(rng, 3, 1000)
    expected = np.sum(data, axis=0)

    def act(comm: Any, rank: int) -> None:
        address = data[rank].ctypes.data
        comm.start(Call.all_reduce(address, address, 1000, "float32"))
        comm.close()
        np.testing.assert_array_equal(data[rank], expected)

    assert on_ranks(library, 3, act) == [None] * 3


def test_few_blocks_are_asked_for(library: _C.NcclLibrary, path: Path) -> None:
    seen = ctypes.CDLL(str(path)).fake_max_ctas
    Communicator(library, _C.nccl_unique_id(library), 0, 1).close()
    assert seen() == 8
    Communicator(library, _C.nccl_unique_id(library), 0, 1, max_ctas=3).close()
    assert seen() == 3


def test_a_collective_starts_no_thread(library: _C.NcclLibrary) -> None:
    """NCCL has one for each call of a communicator that is not a blocking one."""
    data = np.zeros(4, "f4")
    comm = Communicator(library, _C.nccl_unique_id(library), 0, 1)
    before = set(os.listdir("/proc/self/task"))
    for _ in range(50):
        comm.start(Call.all_reduce(data.ctypes.data, data.ctypes.data, 4, "float32"))
        assert set(os.listdir("/proc/self/task")) <= before
    comm.close()


def test_a_rank_that_does_not_come_ends_the_wait(library: _C.NcclLibrary) -> None:
    unique_id = _C.nccl_unique_id(library)
    with pytest.raises(errors.Timeout, match=r"joining .*rank 1 of 2.*another rank .* not come"):
        Communicator(library, unique_id, 1, 2, timeout=0.2)
    # The one that comes too late finds nobody; what has been left behind undoes itself.
    Communicator(library, unique_id, 0, 2).abort()


@pytest.mark.parametrize("variable", ["FAKE_NCCL_INIT", "FAKE_NCCL_FINALIZE"])
def test_a_step_that_never_ends_has_a_deadline(
    library: _C.NcclLibrary, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "never")
    for error in on_ranks(library, 2, lambda comm, _: comm.close(), timeout=0.2):
        assert isinstance(error, errors.Timeout)
    monkeypatch.delenv(variable)


def test_an_abort_ends_a_collective_that_one_rank_leaves_out(library: _C.NcclLibrary) -> None:
    data = np.zeros(4, "f4")
    aborted = threading.Barrier(2)

    def act(comm: Any, rank: int) -> None:
        if rank == 1:
            comm.start(Call.all_reduce(data.ctypes.data, data.ctypes.data, 4, "float32"))
            comm.check()
        comm.abort()
        aborted.wait(60)
        with pytest.raises(errors.AbortedError, match="this process aborted it"):
            comm.check()

    assert on_ranks(library, 2, act) == [None] * 2


def test_abort_from_another_thread_ends_a_call_and_poisons(
    library: _C.NcclLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call may stay in NCCL, which connects at a first collective, with a rank that is dead."""
    monkeypatch.setenv("FAKE_NCCL_ENQUEUE", "never")
    data = np.zeros(4, "f4")
    comm = Communicator(library, _C.nccl_unique_id(library), 0, 1)
    timer = threading.Timer(0.2, comm.abort)
    timer.start()
    call = Call.all_reduce(data.ctypes.data, data.ctypes.data, 4, "float32")
    with pytest.raises(errors.AbortedError, match="this process aborted it"):
        comm.start(call)
    timer.join()
    for use in (lambda: comm.start(call), comm.check):
        with pytest.raises(errors.AbortedError, match="this process aborted it"):
            use()
    comm.abort()
    comm.close()


def test_many_aborts_race_with_collectives(library: _C.NcclLibrary) -> None:
    buffers = np.zeros((3, 4), "f4")  # other ranks may read one after its own has left

    def act(comm: Any, rank: int) -> bool:
        data = buffers[rank]
        call = Call.all_reduce(data.ctypes.data, data.ctypes.data, 4, "float32")
        timers = [threading.Timer(0.01 * (rank + 1) + 0.001 * i, comm.abort) for i in range(3)]
        for timer in timers:
            timer.start()
        with pytest.raises(errors.AbortedError):
            start_for_ever(comm, call)
        for timer in timers:
            timer.join()
        return True

    for _ in range(5):
        assert on_ranks(library, 3, act) == [True] * 3


def test_an_error_in_the_background_is_a_lost_peer(
    library: _C.NcclLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_NCCL_COLLECTIVE", "error")
    data = np.zeros(4, "f4")
    comm = Communicator(library, _C.nccl_unique_id(library), 0, 1)
    comm.start(Call.all_gather(data.ctypes.data, data.ctypes.data, 4, "float32"))
    with pytest.raises(errors.PeerError, match=r"looking after .*connection to peer lost"):
        check_for_ever(comm)
    with pytest.raises(errors.AbortedError, match="connection to peer lost"):
        comm.check()


def test_a_refused_call_is_a_usage_error(library: _C.NcclLibrary) -> None:
    comm = Communicator(library, _C.nccl_unique_id(library), 0, 1)
    said = "NCCL all_reduce of 1 elements in .*the fake adds f32 alone"
    with pytest.raises(errors.UsageError, match=said):
        comm.start(Call.all_reduce(0, 0, 1, "float64"))


def test_no_driver_is_said_in_nccls_words(
    library: _C.NcclLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_NCCL_INIT", "error")
    with pytest.raises(errors.CudaError, match=r"unhandled cuda error \(CUDA driver version is"):
        Communicator(library, _C.nccl_unique_id(library), 0, 1)


def test_ctrl_c_ends_a_wait(library: _C.NcclLibrary) -> None:
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    began = time.monotonic()
    unique_id = _C.nccl_unique_id(library)
    with pytest.raises(KeyboardInterrupt):
        Communicator(library, unique_id, 0, 2, timeout=60)
    assert time.monotonic() - began < 30
    timer.join()
    Communicator(library, unique_id, 1, 2).abort()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rank": 2}, "rank 2 is not in an NCCL communicator of size 2"),
        ({"rank": -1}, "rank -1"),
        ({"unique_id": b"short"}, "5 bytes, not the 128"),
        ({"max_ctas": 0}, "max_ctas=0"),
    ],
)
def test_a_bad_argument_is_named(
    library: _C.NcclLibrary, change: dict[str, Any], words: str
) -> None:
    arguments = {"unique_id": _C.nccl_unique_id(library), "rank": 0, "size": 2, **change}
    with pytest.raises(errors.UsageError, match=words):
        Communicator(library, **arguments)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(errors.UsageError, match=r"dtype='bool' .*bfloat16"):
        Call.all_gather(0, 0, 1, "bool")
    with pytest.raises(errors.UsageError, match=r"op='band' .*sum, prod"):
        Call.all_reduce(0, 0, 1, "float32", "band")
