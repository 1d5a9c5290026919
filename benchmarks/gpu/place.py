"""Where a check runs: on which GPU, or on the CPU in its place, and why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_TIMEOUT = 90  # seconds: the first import of torch on a cold disk, and CUDA's start
_VARIABLE = "ALLREDUCE_DEVICE_RUNTIME"

# What a row may say that it ran on, where that was no GPU.
CPU_RUNTIME = "CPU runtime"  # streams that are threads, host memory as device memory
CPU = "CPU"
STAND_IN = "CPU, torch in our kernel's place"
CPU_TABLE = "CPU, csrc/reduce in the kernel's place"
COMPILER = "compiler"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """gpu: the name of the GPU that torch uses; None for the CPU, and then `why` says why."""

    gpu: str | None
    why: str = ""

    @property
    def device(self) -> str:
        """Torch's name of the device."""
        return "cuda" if self.gpu else "cpu"

    def on(self, otherwise: str) -> str:
        """What a row ran on: the GPU, or what stands for it here."""
        return f"GPU: {self.gpu}" if self.gpu else otherwise


def find_place() -> Place:
    """Ask a process of its own, so that this one never starts CUDA."""
    runtime = os.environ.get(_VARIABLE, "cuda")
    if runtime.startswith("cpu"):
        return Place(gpu=None, why=f"{_VARIABLE}={runtime}")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.gpu.place"],
            cwd=Path(__file__).resolve().parents[2],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        return Place(gpu=None, why=f"torch did not say within {_TIMEOUT} s whether there is a GPU")
    if done.returncode:
        return Place(gpu=None, why=f"asking torch for a GPU failed: {done.stderr.strip()[-300:]}")
    return Place(**json.loads(done.stdout.splitlines()[-1]))


def _ask() -> dict[str, str | None]:
    try:
        import torch
    except ImportError as error:
        return {"gpu": None, "why": f"torch cannot be imported: {error}"}
    if not torch.cuda.is_available():
        build = torch.version.cuda
        how = f"is built for CUDA {build} and finds no GPU" if build else "is built without CUDA"
        return {"gpu": None, "why": f"torch {torch.__version__} {how}"}
    torch.ones(1, device="cuda").add_(1).item()  # that it works, too
    return {"gpu": torch.cuda.get_device_name(0), "why": ""}


if __name__ == "__main__":
    print(json.dumps(_ask()))
