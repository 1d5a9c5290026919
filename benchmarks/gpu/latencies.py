"""Section: what it costs to chain streams and host threads, by each mechanism."""

from __future__ import annotations

import os
import statistics

from allreduce import _C, cuda
from allreduce.communicator import device_streams
from benchmarks.gpu.place import CPU_RUNTIME
from benchmarks.gpu.rows import Rows
from benchmarks.gpu.timing import host_seconds_each

_CHAINS = {
    "query": "ask for an event that has passed",
    "event": "record an event, ask until it has passed",
    "write_flag": "stream writes a flag, host polls it",
    "wait_flag": "host stores, a waiting stream writes back",
}


def run(rows: Rows) -> None:
    """Rounds in the core, one at a time; then the launch of a kernel."""
    on = rows.place.on(CPU_RUNTIME)
    rounds = 20 if rows.quick else 200 if rows.small else 2000
    for words, runtime in _runtimes(rows.place.gpu is not None).items():
        rows.fact(words, f"chained by {runtime.chaining}")
        for chain, name in _CHAINS.items():
            if words == "host callbacks" and chain in ("query", "event"):
                continue  # the same calls as with memory operations
            runtime.latency(0, chain, 5)
            seconds = sorted(runtime.latency(0, chain, rounds))
            note = f"p99 {seconds[len(seconds) * 99 // 100] * 1e6:.3g} us; {words}"
            rows.add(name, statistics.median(seconds) * 1e6, "us", on=on, note=note)
    if rows.place.gpu is None:
        rows.absent("launch of the smallest kernel", "there is no GPU to launch it on")
    else:
        _launches(rows, on)


def _runtimes(gpu: bool) -> dict[str, _C.DeviceRuntime]:
    """This process's runtime, and the same without stream memory operations."""
    if gpu:
        return {"default": device_streams.runtime(), "host callbacks": cuda.runtime(callbacks=True)}
    name = os.environ.get("ALLREDUCE_DEVICE_RUNTIME", "")
    found = {"default": device_streams.runtime()}
    if name == "cpu":
        found["host callbacks"] = _C.cpu_device_runtime(callbacks=True)
    return found


def _launches(rows: Rows, on: str) -> None:
    import torch

    from allreduce import _cuda

    x = torch.ones(1, device="cuda")
    stream = torch.cuda.current_stream().cuda_stream

    def ours(_: int) -> None:
        _cuda.divide(x.data_ptr(), "float32", 1, 2, stream)

    for name, call in (("our smallest", ours), ("torch's empty", lambda _: torch.cuda._sleep(0))):
        seconds = host_seconds_each(rows.place, call, calls=500, warm_up=100)
        rows.add(f"{name} kernel, 500 in a row", seconds * 1e6, "us", on=on, note="of the host")
