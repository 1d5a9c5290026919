"""Compiles and loads tests/torch/cpu_device.cc: torch's "privateuseone" on the CPU runtime.

ALLREDUCE_DEVICE_RUNTIME must be "cpu" when torch is imported, which registers the backend.
"""

import fcntl
import types
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import torch

from allreduce.commands import native_build

ROOT = Path(__file__).resolve().parents[3]
SOURCE = ROOT / "tests/torch/cpu_device.cc"
OUTPUT = ROOT / f"build/tests/cpu_device{native_build.EXT_SUFFIX}"


def build() -> None:
    """About 40 seconds, unless it is up to date."""
    csrc, core = native_build.csrc_dir(), Path(native_build.require_core().__file__)
    found = native_build.Torch(folder=Path(torch.__file__).parent, version=str(torch.__version__))
    command = native_build.backend_command(csrc, found, core, OUTPUT)
    command = tuple(
        str(SOURCE) if part.endswith(native_build.BACKEND) else part for part in command
    )
    salt = native_build.cxx_version() + found.version
    unit = native_build.Unit(command=command, output=OUTPUT, inputs=(SOURCE,), salt=salt)
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    with OUTPUT.with_suffix(".lock").open("w") as lock:  # tests may run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        unit.run(csrc)


def load() -> types.ModuleType:
    """Registers the device; returns the module, which has `Gate`."""
    native_build.require_core()  # its symbols are found in the library that is loaded already
    loader = ExtensionFileLoader("cpu_device", str(OUTPUT))
    spec = spec_from_file_location("cpu_device", OUTPUT, loader=loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    device = types.ModuleType("torch.privateuseone")
    device.is_available = lambda: True
    device.device_count = lambda: 1
    device.current_device = lambda: 0
    torch.utils.rename_privateuse1_backend("privateuseone")  # says that there is one
    torch._register_device_module("privateuseone", device)
    return module


if __name__ == "__main__":
    build()
