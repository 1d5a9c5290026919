"""hier-allreduce: hierarchical allreduce between CPU ranks, for NumPy and PyTorch.

    import allreduce

    comm = allreduce.init()  # under torchrun, srun or mpirun
    comm.allreduce(x)  # sums the array x of all ranks, in place

Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour" (2017), section 4.

Everything is imported at its first use: `import torch` imports this package to find the backend
"hier", and must neither wait for the native core nor fail where it was not built.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from allreduce._init import init
    from allreduce._launch import Launch, detect_launch
    from allreduce._work import Work
    from allreduce.communicator import Communicator
    from allreduce.errors import (
        AbortedError,
        CudaError,
        Error,
        IntegrityError,
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
    "IntegrityError",
    "Launch",
    "MismatchError",
    "PeerError",
    "SystemCallError",
    "Timeout",
    "UsageError",
    "Work",
    "detect_launch",
    "init",
]

__version__ = "0.1.0"

_HOMES = {
    **{"init": "_init", "Work": "_work", "Communicator": "communicator"},
    **{"Launch": "_launch", "detect_launch": "_launch"},
}
_SUBMODULES = ("cost", "cuda", "errors", "optim", "schedules", "simulate", "torch", "tuning")

if not TYPE_CHECKING:  # a type checker finds the names above and the submodules by itself

    def __getattr__(name: str) -> Any:
        """Import what is asked for; ImportError in one sentence if the core is not built."""
        if name == "_C":
            return importlib.import_module("allreduce._build").require_core()
        if name in _SUBMODULES:
            return importlib.import_module(f"allreduce.{name}")
        if name in __all__:
            home = importlib.import_module(f"allreduce.{_HOMES.get(name, 'errors')}")
            return getattr(home, name)
        raise AttributeError(f"module 'allreduce' has no attribute {name!r}")
