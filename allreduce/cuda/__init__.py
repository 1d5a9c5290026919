"""Whether this installation can use NVIDIA GPUs, and how; and if not, why."""

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from allreduce.cuda import nccl
from allreduce.cuda.local_stage import LocalStage, choose
from allreduce.errors import UsageError

__all__ = [
    "CudaInfo",
    "Device",
    "LocalStage",
    "Nccl",
    "device_count",
    "info",
    "is_available",
    "kernels",
    "why_not",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One GPU: its name, compute capability (major, minor), memory in bytes.

    `peers` are the other GPUs whose memory it can reach, as numbers.
    """

    name: str
    capability: tuple[int, int]
    memory_bytes: int
    peers: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Nccl:
    """NCCL's library, and who pointed to it: "this process", "NCCL_LIB", "wheel" or "system"."""

    version: str
    path: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaInfo:
    """What is known about CUDA here.

    Versions are (major, minor); None where there is no driver, or no CUDA build. `nccl` is None if
    `nccl_why_not` has a reason. `local_stage` is how the GPUs of this node would add.
    """

    available: bool
    why_not: str | None
    driver_version: tuple[int, int] | None
    runtime_version: tuple[int, int] | None
    devices: tuple[Device, ...]
    stream_memory_operations: bool
    nccl: Nccl | None
    nccl_why_not: str | None
    local_stage: LocalStage


def _load() -> ModuleType | str:
    """The compiled module, or the reason why there is none."""
    name = "allreduce._cuda"
    try:
        importlib.import_module("allreduce._C")  # its symbols are used by the other
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            return (
                "built without CUDA: nvcc was not found when allreduce was built; "
                "install the CUDA toolkit, put nvcc on PATH and install allreduce from its source"
            )
        return f"{name} cannot be loaded: {error}"
    except ImportError as error:
        return f"{name} cannot be loaded: {error}; install allreduce again"


def _reason(module: ModuleType) -> str | None:
    try:
        reason: str | None = module.why_not()
    except RuntimeError as error:  # the driver refused a query
        return str(error)
    return reason


def _version(number: int | None) -> tuple[int, int] | None:
    return (number // 1000, number % 1000 // 10) if number else None


def why_not() -> str | None:
    """Says why no GPU can be used: a sentence, or None if one can. Never raises.

    The first call initialises CUDA where there is a driver: do not use CUDA in a child that is
    forked later.
    """
    module = _load()
    return module if isinstance(module, str) else _reason(module)


def kernels() -> ModuleType | None:
    """The module of the GPU's kernels, which take addresses; None where it is not built."""
    module = _load()
    return None if isinstance(module, str) else module


def runtime(*, callbacks: bool = False) -> Any:
    """The device runtime of the GPUs, for the core.

    callbacks: chain by host callbacks even where the driver has stream memory operations.

    Raises:
        UsageError: no GPU can be used; the text says why.
    """
    module = _load()
    if isinstance(module, str) or (reason := _reason(module)) is not None:
        why = module if isinstance(module, str) else reason
        raise UsageError(f"the array is in GPU memory, but no GPU can be used: {why}")
    return module.runtime(callbacks=callbacks)


def is_available() -> bool:
    """Whether a GPU can be used; `why_not` has the reason if not. Never raises."""
    return why_not() is None


def device_count() -> int:
    """How many GPUs can be used. Never raises, and asks no more of a GPU than that it is there."""
    module = _load()
    return 0 if isinstance(module, str) or _reason(module) else len(module.devices())


def _devices(module: ModuleType) -> tuple[Device, ...]:
    """The GPUs. Raises RuntimeError if the driver refuses a query."""
    found = module.devices()
    return tuple(
        Device(
            name=name,
            capability=(major, minor),
            memory_bytes=memory,
            peers=tuple(
                other
                for other in range(len(found))
                if other != device and module.can_access_peer(device, other)
            ),
        )
        for device, (name, major, minor, memory) in enumerate(found)
    )


def _find_nccl() -> Nccl | str:
    """NCCL, or the reason why there is none."""
    try:
        found = nccl.library()
    except UsageError as error:
        return str(error)
    return Nccl(version=found.version, path=found.path, source=found.source)


def info() -> CudaInfo:
    """Everything known about CUDA here, for reports. Never raises. Loads NCCL."""
    module, nccl = _load(), _find_nccl()
    driver = runtime_linked = None
    devices: tuple[Device, ...] = ()
    memory_operations = False
    if isinstance(module, str):
        reason: str | None = module
    else:
        driver, runtime_linked = module.driver_version(), module.runtime_version()
        reason = _reason(module)
    if not isinstance(module, str) and reason is None:
        try:
            devices = _devices(module)
            memory_operations = module.has_memory_operations()
        except RuntimeError as error:
            reason = str(error)
    nccl_why_not = nccl if isinstance(nccl, str) else None
    return CudaInfo(
        available=reason is None,
        why_not=reason,
        driver_version=_version(driver),
        runtime_version=_version(runtime_linked),
        devices=devices,
        stream_memory_operations=memory_operations,
        nccl=None if isinstance(nccl, str) else nccl,
        nccl_why_not=nccl_why_not,
        local_stage=choose(
            why_not=reason,
            peers=[device.peers for device in devices],
            stream_memory_operations=memory_operations,
            nccl_why_not=nccl_why_not,
        ),
    )
