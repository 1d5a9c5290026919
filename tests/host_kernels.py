"""The GPU's block bodies, compiled by g++ to run on the CPU: as a library, or under a sanitizer."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# -Wno-unknown-pragmas: `#pragma unroll` is nvcc's.
FLAGS = (
    *("-std=c++20", "-O1", "-pthread", "-ffp-contract=off", "-Wall", "-Wextra", "-Wconversion"),
    *("-Werror", "-Wno-unknown-pragmas", "-Wno-tsan", f"-I{ROOT / 'csrc'}"),
)
SANITIZERS = {
    # With its checks, optimizing takes longer than all that runs.
    "asan": ("-fsanitize=address,undefined", "-g1", "-O0"),
    "tsan": ("-fsanitize=thread", "-g1"),
}


def _compile(name: str, output: Path, *flags: str) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the GPU's block bodies with")
    sources = (ROOT / "tests/cuda" / f"{name}.cc", ROOT / "csrc/reduce/dtype.cc")
    command = [compiler, *FLAGS, *flags, *map(str, sources), "-o", str(output)]
    subprocess.run(command, check=True, timeout=280)
    return output


def library(name: str, folder: Path) -> ctypes.CDLL:
    """Compiles tests/cuda/<name>.cc into a library and loads it."""
    return ctypes.CDLL(str(_compile(name, folder / f"{name}.so", "-fPIC", "-shared")))


def program(name: str, folder: Path, sanitizer: str) -> Path:
    """Compiles tests/cuda/<name>.cc into a program under `asan` (with UBSan) or `tsan`."""
    flags = ("-fno-sanitize-recover=all", *SANITIZERS[sanitizer])
    return _compile(name, folder / f"{name}_{sanitizer}", *flags)


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs it to its end; a report of a sanitizer makes its exit code nonzero."""
    # setarch -R: ThreadSanitizer's shadow memory wants a fixed layout of the address space.
    command = ["setarch", "-R", str(program), *arguments]
    # A build under a sanitizer preloads its own runtime.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    environment["TSAN_OPTIONS"] = "halt_on_error=1"  # the first report is enough, and each is slow
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
