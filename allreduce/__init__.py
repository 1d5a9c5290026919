"""hier-allreduce: hierarchical allreduce between CPU ranks, for NumPy and PyTorch.

    import allreduce

    comm = allreduce.init()  # under torchrun, srun or mpirun
    comm.allreduce(x)  # sums the array x of all ranks, in place

Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour" (2017), section 4.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from allreduce import _build

_build.require_core()

from allreduce._init import init  # noqa: E402
from allreduce._work import Work  # noqa: E402
from allreduce.communicator import Communicator  # noqa: E402
from allreduce.errors import (  # noqa: E402
    AbortedError,
    CudaError,
    Error,
    MismatchError,
    PeerError,
    SystemCallError,
    Timeout,
    UsageError,
)

__all__ = [
    "AbortedError",
    "Communicator",
    "CudaError",
    "Error",
    "MismatchError",
    "PeerError",
    "SystemCallError",
    "Timeout",
    "UsageError",
    "Work",
    "init",
]

__version__ = "0.1.0"

_LAZY = ("cost", "cuda", "optim", "schedules", "simulate", "torch")


if not TYPE_CHECKING:  # a type checker finds the submodules by itself

    def __getattr__(name: str) -> Any:
        """Import a submodule at its first use: `import allreduce` needs neither torch nor CUDA."""
        if name in _LAZY:
            return importlib.import_module(f"allreduce.{name}")
        raise AttributeError(f"module 'allreduce' has no attribute {name!r}")
