"""Device memory that ranks map, contexts, and flags that do not work, on the CPU runtime."""

import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from device_memory import a_device
from group_cases import nodes, size
from worlds import SANITIZED, run_processes, run_threads

from allreduce import _C

NBYTES = 1 << 20


@pytest.fixture(autouse=True)
def cpu_runtime(monkeypatch):
    monkeypatch.setenv("ALLREDUCE_DEVICE_RUNTIME", "cpu")


def importers(count):
    """A part of zero host memory for each rank."""
    return np.zeros((count, _C.SharedDeviceMemory.importer_bytes()), np.uint8)


def shared_memory(parts, rank):
    return _C.SharedDeviceMemory(
        runtime=_C.cpu_device_runtime(),
        device=0,
        local_size=len(parts),
        local_rank=rank,
        nbytes=NBYTES,
        importer=parts[rank],
    )


def test_memory_is_not_freed_while_a_rank_maps_it():
    owned, misuses = _C.cpu_shared_counts()
    parts = importers(2)
    ranks = [shared_memory(parts, rank) for rank in range(2)]
    handles = [memory.handle for memory in ranks]
    for memory in ranks:
        memory.open(handles)
    first = ranks.pop(0)
    del first  # the other does not close, so this one gives up: its memory stays
    assert _C.cpu_shared_counts() == (owned + 2, misuses)
    del ranks, memory  # the first has closed
    assert _C.cpu_shared_counts() == (owned + 1, misuses)


def test_ranks_that_close_together_free_what_they_have():
    owned, misuses = _C.cpu_shared_counts()
    parts = importers(3)
    ranks = [shared_memory(parts, rank) for rank in range(3)]
    handles = [memory.handle for memory in ranks]
    for memory in ranks:
        memory.open(handles)
    del memory
    threads = [threading.Thread(target=ranks.pop) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert _C.cpu_shared_counts() == (owned, misuses)


@pytest.mark.parametrize("layout", ["1x2", "1x3", "2x2"])
def test_groups_that_close_free_what_they_have(layout):
    owned, misuses = _C.cpu_shared_counts()

    def body(comm):
        with a_device() as device:
            x = device.array(np.ones(1_000_000, np.float32))
            comm.allreduce(x)
            assert (device.read(x) == comm.world_size).all()
        assert comm.device_stage == "peer"

    run_threads(size(layout), body, nodes=nodes(layout))
    assert _C.cpu_shared_counts() == (owned, misuses)


IMPORTER = """
import sys
import numpy as np
from allreduce import _C

file, handle = sys.argv[1:]
parts = np.memmap(file, np.uint8, "r+")
mine = _C.SharedDeviceMemory(
    runtime=_C.cpu_device_runtime(), device=0, local_size=2, local_rank=1, nbytes=4096,
    importer=parts.reshape(2, -1)[1],
)
mine.open([bytes.fromhex(handle), mine.handle])
print("open", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(SANITIZED, reason="a process under a sanitizer tells nothing new")
def test_a_rank_that_was_killed_maps_nothing_any_more(tmp_path):
    owned, misuses = _C.cpu_shared_counts()
    shape = (2, _C.SharedDeviceMemory.importer_bytes())
    parts = np.memmap(tmp_path / "importers", np.uint8, "w+", shape=shape)
    mine = shared_memory(parts, 0)
    command = [sys.executable, "-c", IMPORTER, str(parts.filename), mine.handle.hex()]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as child:
        assert child.stdout.readline() == "open\n"
        child.send_signal(signal.SIGKILL)
        del mine  # it may be a zombie still
    assert _C.cpu_shared_counts() == (owned, misuses)


def allreduce_with_broken_flags(comm, refused):
    import numpy as np
    from device_memory import a_device

    from allreduce import _C
    from allreduce.communicator import device_streams

    broken = _C.cpu_device_runtime_of_broken_flags(refused=refused)
    device_streams.runtime = lambda: broken
    sums = []
    with a_device() as device:
        for count in (100, 1_000_000):
            x = device.array(np.ones(count, np.float32))
            comm.allreduce(x)
            sums.append(device.read(x).sum().item())
    return [*sums, broken.chaining, comm.device_stage]


@pytest.mark.skipif(SANITIZED, reason="processes")
@pytest.mark.parametrize("refused", [True, False], ids=["refused", "lost"])
def test_flags_that_do_not_work_are_found_by_a_trial(tmp_path, refused):
    for outcome in run_processes(2, allreduce_with_broken_flags, tmp_path, refused, nodes=1):
        *found, stage = outcome.result
        assert found == [200, 2_000_000, "host callbacks"]
        assert stage.startswith("host: peer: the driver has no stream memory operations that work")


CONTEXTS = """
import numpy as np
from allreduce import _C

runtime = _C.cpu_device_runtime()
counters = np.zeros(_C.MappedPeerStage.counter_bytes(), np.uint8)
peers = _C.MappedPeerStage(
    runtime=runtime, device=3, local_size=1, local_rank=0, counters=counters.ctypes.data
)
del peers
print(*[device for device in range(8) if runtime.has_context(device)])
"""


@pytest.mark.skipif(SANITIZED, reason="a process under a sanitizer tells nothing new")
def test_a_thread_that_never_chose_a_device_makes_no_context_on_device_0():
    done = subprocess.run(
        [sys.executable, "-c", CONTEXTS], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["3"]
