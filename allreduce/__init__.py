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
    from allreduce.communicator.communicator import Communicator
    from allreduce.communicator.init import init
    from allreduce.communicator.work import Work
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
    from allreduce.rendezvous.launcher_environment import Launch, detect_launch

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
    "init": "communicator.init",
    "Work": "communicator.work",
    "Communicator": "communicator",
    "Launch": "rendezvous.launcher_environment",
    "detect_launch": "rendezvous.launcher_environment",
}
_SUBMODULES = {
    **{name: name for name in ("cuda", "errors", "optim", "schedules", "torch", "tuning")},
    "cost": "tuning.cost",
    "simulate": "schedules.simulate",
}

if not TYPE_CHECKING:  # a type checker finds the names above and the submodules by itself

    def __getattr__(name: str) -> Any:
        """Import what is asked for; ImportError in one sentence if the core is not built."""
        if name == "_C":
            return importlib.import_module("allreduce.commands.native_build").require_core()
        if name in _SUBMODULES:
            return importlib.import_module(f"allreduce.{_SUBMODULES[name]}")
        if name in __all__:
            home = importlib.import_module(f"allreduce.{_HOMES.get(name, 'errors')}")
            return getattr(home, name)
        raise AttributeError(f"module 'allreduce' has no attribute {name!r}")
