"""How the GPUs of one node would add among themselves, and what stands in the way of better."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["STAGES", "VARIABLE", "LocalStage", "choose", "expandable_segments"]

VARIABLE = "ALLREDUCE_DEVICE_LOCAL"
# What it may say, and which stages are then tried, in this order; the host's is always there.
STAGES = {"auto": ("peer", "nccl"), "peer": ("peer",), "nccl": ("nccl",), "host": ()}

# torch's, the newer name first.
_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalStage:
    """A way to add inside a node: "peer", "nccl" or "host"; and the reason for it, with a remedy.

    "peer" reads the other GPUs' memory directly, "nccl" calls NCCL, "host" copies to the CPU's
    memory and adds there.
    """

    name: str
    reason: str


def expandable_segments(environ: Mapping[str, str] = os.environ) -> str | None:
    """Say which variable makes torch allocate memory that CUDA IPC cannot share, and the remedy."""
    for variable in _VARIABLES:
        options = environ.get(variable, "").lower().replace(" ", "").split(",")
        if "expandable_segments:true" in options:
            return (
                f"{variable} has expandable_segments:True, and CUDA IPC cannot share such memory "
                "between processes: take that option away"
            )
    return None


def _no_peer(peers: Sequence[Sequence[int]], stream_memory_operations: bool) -> str | None:
    """Why GPUs cannot use each other's memory; `peers[i]` are those that GPU i reaches."""
    for device, reached in enumerate(peers):
        for other in range(len(peers)):
            if other != device and other not in reached:
                return f"GPU {device} cannot reach the memory of GPU {other}"
    if not stream_memory_operations:
        return "the driver has no stream memory operations: update it"
    return None


def choose(
    *,
    why_not: str | None,
    peers: Sequence[Sequence[int]],
    stream_memory_operations: bool,
    nccl_why_not: str | None,
    environ: Mapping[str, str] = os.environ,
) -> LocalStage:
    """Choose the fastest stage that nothing stands in the way of; `peers` has an entry per GPU."""
    if why_not is not None:
        return LocalStage(name="host", reason=f"no GPU can be used: {why_not}")
    asked = environ.get(VARIABLE, "auto")
    wanted = STAGES.get(asked, ())
    if not wanted:
        reason = "asks for it" if asked in STAGES else f"is none of {', '.join(STAGES)}"
        return LocalStage(name="host", reason=f"{VARIABLE}={asked} {reason}")
    ruled_out = f"{VARIABLE}={asked} asks for another"
    no_peer = _no_peer(peers, stream_memory_operations) if "peer" in wanted else ruled_out
    if no_peer is None:
        reason = "every GPU reaches the memory of every other"
        # No obstacle: what the stage shares is memory that it has allocated itself.
        if (unshared := expandable_segments(environ)) is not None:
            reason += f"; torch's own tensors cannot be shared: {unshared}"
        return LocalStage(name="peer", reason=reason)
    no_nccl = nccl_why_not if "nccl" in wanted else ruled_out
    if len(peers) == 1:
        no_nccl = "NCCL wants a GPU for each rank"
    if no_nccl is None:
        return LocalStage(name="nccl", reason=no_peer)
    return LocalStage(name="host", reason=f"{no_peer}; {no_nccl}")
