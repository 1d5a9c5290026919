"""Section: the machine, and the versions of everything that has a part in the results."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata

from allreduce.commands.job_description import cpu_name
from benchmarks.gpu.rows import Rows

_PACKAGES = ("torch", "numpy", "cupy-cuda13x", "cupy-cuda12x", "nvidia-nccl-cu13")
_SMI = "name,driver_version,memory.total,clocks.max.sm,power.limit,pcie.link.gen.current"


def run(rows: Rows) -> None:
    """Write the facts; whether the core can use the GPU that torch uses is a check."""
    rows.fact("CPU", f"{len(os.sched_getaffinity(0))} cores of {os.cpu_count()}, {cpu_name()}")
    rows.fact("load", f"{os.getloadavg()[0]:.1f}")
    rows.fact("Linux, Python", f"{platform.release()}, {platform.python_version()}")
    for package in _PACKAGES:
        rows.fact(package, _version(package))
    rows.fact("nvidia-smi", _smi())
    _core(rows)
    if rows.place.gpu is not None:
        _torch(rows)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _smi() -> str:
    if shutil.which("nvidia-smi") is None:
        return "not installed"
    command = ["nvidia-smi", f"--query-gpu={_SMI}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return "it does not answer within 20 s"
    return (done.stdout or done.stderr).strip()


def _core(rows: Rows) -> None:
    from allreduce import cuda
    from allreduce.communicator import device_streams

    info = cuda.info()
    rows.fact("CUDA of the driver, of our build", f"{info.driver_version}, {info.runtime_version}")
    rows.fact("NCCL", str(info.nccl or info.nccl_why_not))
    rows.fact("local stage", str(info.local_stage))
    if rows.place.gpu is None:
        rows.fact("no GPU", f"{rows.place.why}; the core: {info.why_not}")
    else:
        rows.check(
            "the core uses the GPU",
            info.available,
            on=rows.place.on(""),
            note=info.why_not or "",
        )
    try:
        runtime = device_streams.runtime()
    except ValueError as error:
        rows.absent("device runtime", str(error))
    else:
        rows.fact("device runtime", f"{runtime.name}, chained by {runtime.chaining}")


def _torch(rows: Rows) -> None:
    import torch

    properties = torch.cuda.get_device_properties(0)
    rows.fact(
        "torch's view",
        f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, "
        f"{properties.multi_processor_count} multiprocessors, {properties.total_memory >> 30} GiB, "
        f"compute capability {properties.major}.{properties.minor}",
    )
