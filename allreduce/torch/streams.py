"""Order between streams of a device, where gradients come from several."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from allreduce.communicator.device_arrays import runs_on_cpu

__all__ = ["DEVICES", "current", "handle", "wait_for"]

DEVICES = ("cuda", "privateuseone") if runs_on_cpu() else ("cuda",)


def current(device: torch.device) -> torch.Stream | None:
    """Return this thread's current stream; None on the CPU."""
    return None if device.type == "cpu" else torch.accelerator.current_stream(device)


def handle(device: torch.device) -> int:
    """Return this thread's current stream as kernels take it; 0 on the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.current_stream(device).cuda_stream)
    return 0 if device.type == "cpu" else torch.accelerator.current_stream(device).stream_id


def wait_for(streams: Iterable[torch.Stream], here: torch.Stream) -> None:
    """Make `here` wait for what is enqueued on the others."""
    for stream in streams:
        if stream != here:
            here.wait_stream(stream)
