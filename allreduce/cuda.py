"""Whether this installation can use NVIDIA GPUs, and if not, why."""

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from allreduce.errors import UsageError

__all__ = ["CudaInfo", "Device", "info", "is_available", "why_not"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One GPU: its name, compute capability (major, minor) and memory in bytes."""

    name: str
    capability: tuple[int, int]
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaInfo:
    """What is known about CUDA here.

    Versions are (major, minor); None where there is no driver, or no CUDA build.
    """

    available: bool
    why_not: str | None
    driver_version: tuple[int, int] | None
    runtime_version: tuple[int, int] | None
    devices: tuple[Device, ...]


def _load() -> ModuleType | str:
    """The compiled module, or the reason why there is none."""
    name = "allreduce._cuda"
    try:
        importlib.import_module("allreduce._C")  # its symbols are used by the other
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            return (
                "built without CUDA: nvcc was not found when allreduce was installed; "
                "install the CUDA toolkit, put nvcc on PATH and install allreduce again"
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


def _version(number: int) -> tuple[int, int] | None:
    return (number // 1000, number % 1000 // 10) if number else None


def why_not() -> str | None:
    """Says why no GPU can be used: a sentence, or None if one can. Never raises.

    The first call initialises CUDA where there is a driver: do not use CUDA in a child that is
    forked later.
    """
    module = _load()
    return module if isinstance(module, str) else _reason(module)


def runtime() -> Any:
    """The device runtime of the GPUs, for the core.

    Raises:
        UsageError: no GPU can be used; the text says why.
    """
    module = _load()
    if isinstance(module, str) or (reason := _reason(module)) is not None:
        why = module if isinstance(module, str) else reason
        raise UsageError(f"the array is in GPU memory, but no GPU can be used: {why}")
    return module.runtime()


def is_available() -> bool:
    """Whether a GPU can be used; `why_not` has the reason if not. Never raises."""
    return why_not() is None


def info() -> CudaInfo:
    """Everything known about CUDA here, for reports. Never raises."""
    module = _load()
    if isinstance(module, str):
        return CudaInfo(
            available=False, why_not=module, driver_version=None, runtime_version=None, devices=()
        )
    reason = _reason(module)
    devices: list[tuple[str, int, int, int]] = []
    try:
        devices = module.devices()
    except RuntimeError as error:
        reason = reason or str(error)
    return CudaInfo(
        available=reason is None,
        why_not=reason,
        driver_version=_version(module.driver_version()),
        runtime_version=_version(module.runtime_version()),
        devices=tuple(
            Device(name=name, capability=(major, minor), memory_bytes=memory)
            for name, major, minor, memory in devices
        ),
    )
