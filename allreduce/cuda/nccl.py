"""Which NCCL this process uses; it is loaded when it is first asked for."""

from __future__ import annotations

import functools
import importlib.util
import os
from pathlib import Path

from allreduce import _C

__all__ = ["library", "wheels"]

_VARIABLE = "NCCL_LIB"


def wheels() -> list[str]:
    """Paths where pip's packages nvidia-nccl-cu12 and -cu13 put NCCL; the same for both."""
    spec = importlib.util.find_spec("nvidia")  # a namespace: nothing is imported
    folders = spec.submodule_search_locations if spec else None
    return [str(Path(folder, "nccl/lib/libnccl.so.2")) for folder in folders or ()]


@functools.cache
def library() -> _C.NcclLibrary:
    """Load NCCL: torch's copy if it is loaded, else $NCCL_LIB, the wheel's, the system's.

    A torch that is imported later uses the copy that is loaded here. Raises UsageError with the
    remedy if there is none, or if it is too old.
    """
    return _C.find_nccl(os.environ.get(_VARIABLE, ""), wheels())
