"""How many GPUs a job on this machine can have: asked without torch, which takes seconds."""

from __future__ import annotations

from importlib import metadata

__all__ = ["usable_gpus"]


def usable_gpus() -> int:
    """GPUs that torch, too, can use: 0 with a torch that was built for CPUs."""
    try:
        release = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return 0
    from allreduce import cuda  # here, so that --help needs no NumPy

    return 0 if release.endswith("+cpu") else cuda.device_count()
