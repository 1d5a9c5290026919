"""How long a stream and a host thread take to hear of each other, on the CPU runtime."""

import numpy as np
import pytest

from allreduce import _C
from allreduce.communicator import device_streams
from allreduce.errors import UsageError

CHAINS = ("query", "event", "write_flag", "wait_flag")


@pytest.mark.parametrize("callbacks", [False, True])
@pytest.mark.parametrize("chain", CHAINS)
def test_every_round_is_timed(chain, callbacks):
    seconds = _C.cpu_device_runtime(callbacks=callbacks).latency(0, chain, 20)
    assert len(seconds) == 20
    assert all(0 <= s < 10 for s in seconds)


def test_a_round_trip_takes_longer_than_a_question():
    runtime = _C.cpu_device_runtime()
    assert min(runtime.latency(0, "wait_flag", 20)) > min(runtime.latency(0, "query", 20))


def test_an_unknown_chain_is_refused():
    with pytest.raises(UsageError, match="chain must be query"):
        _C.cpu_device_runtime().latency(0, "pigeon", 1)


def test_pinned_memory_is_zero_and_can_be_copied():
    runtime = _C.cpu_device_runtime()
    memory = runtime.allocate_pinned(4096)
    stream = runtime.create_stream(0)
    found = np.full(4096, 99, np.uint8)
    runtime.copy(found.ctypes.data, memory, 4096, stream)
    runtime.synchronize(0, stream)
    runtime.destroy_stream(stream)
    runtime.free_pinned(memory)
    assert not found.any()


@pytest.mark.parametrize("name", ["cuda", "cuda-callbacks", "tpu"])
def test_the_runtime_is_chosen_by_its_name(monkeypatch, name):
    monkeypatch.setenv("ALLREDUCE_DEVICE_RUNTIME", name)
    if name == "tpu":
        with pytest.raises(UsageError, match="must be cuda, cuda-callbacks, cpu or cpu-callbacks"):
            device_streams.runtime()
        return
    try:
        chaining = device_streams.runtime().chaining
    except UsageError as error:
        assert "no GPU can be used" in str(error)  # noqa: PT017
    else:
        assert name == "cuda" or chaining == "host callbacks"
