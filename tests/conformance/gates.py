"""Opens what torch and its suite reserve for backends by name; no assertion of a test is changed.

Two kinds of gates stand before a backend from outside. The suite's decorators compare the backend's
name with gloo's or mpi's when the suite is imported. And some functions of torch look at the name
before they call the backend. The first kind is opened by a name that answers to others; each of the
second kind is a row of REPLACEMENTS, whose first line says what it is for.
"""

from __future__ import annotations

import functools
import os
import unittest
from collections.abc import Callable
from types import ModuleType
from typing import Any
from unittest import mock

from .on_cpu import import_rewritten, open_devices


class OpenName(str):
    """A backend's name that also answers to gloo and mpi; in sets, to gloo alone.

    Sets that hold mpi say what mpi lacks.
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return other in (str(self), "gloo", "mpi")

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash("gloo")


def _monitored_barrier(_backend: str) -> None:
    """dist.monitored_barrier refuses a group that is not gloo's, and else calls the backend's."""
    import torch.distributed as dist
    from torch.distributed import distributed_c10d as c10d

    original = c10d.monitored_barrier

    @functools.wraps(original)
    def monitored_barrier(*args: Any, **kwargs: Any) -> Any:
        with mock.patch.object(c10d, "get_backend", return_value=dist.Backend.GLOO):
            return original(*args, **kwargs)

    c10d.monitored_barrier = dist.monitored_barrier = monitored_barrier


def _ddp_log(backend: str) -> None:
    """DDP's log has the backend's name only if it is torch's own, else "custom"."""
    from torch.nn.parallel import DistributedDataParallel

    original = DistributedDataParallel._get_ddp_logging_data

    def logging_data(self: DistributedDataParallel) -> dict[str, Any]:
        data = original(self)
        return {**data, "backend_name": backend} if data["backend_name"] == "custom" else data

    DistributedDataParallel._get_ddp_logging_data = logging_data


def _small_worlds(_backend: str) -> None:
    """Tests with a group of ranks 1 and 2 need 3 ranks, and 8 if BACKEND is not "mpi"."""
    from torch.testing._internal import common_distributed

    if int(os.environ["WORLD_SIZE"]) >= 3:
        common_distributed.skip_if_small_worldsize = lambda test: test


def _profiles(backend: str) -> None:
    """The suite looks for a backend's events in a profile only if the backend is torch's own."""
    from torch.testing._internal.distributed import distributed_test as suite

    suite.PROFILING_SUPPORTED_BACKENDS.append(backend)
    suite.SEND_RECV_PROFILING_SUPPORTED_BACKENDS.append(backend)


def _skip_at_once() -> None:
    """GPUs are hidden here: the same skips, before ranks are started to find that out."""
    from torch.testing._internal import common_distributed

    skips = common_distributed.TEST_SKIPS

    def skip_if_lt_x_gpu(gpus: int, *, allow_cpu: bool = False) -> Callable[[Any], Any]:
        message = skips[f"multi-gpu-{gpus}"].message
        return unittest.skipIf(not allow_cpu, message)

    common_distributed.skip_if_lt_x_gpu = skip_if_lt_x_gpu
    common_distributed.skip_if_no_gpu = unittest.skip(skips["no_cuda"].message)


Replacement = Callable[[str], None]
BEFORE_IMPORT: tuple[Replacement, ...] = (_monitored_barrier, _ddp_log, _small_worlds)
AFTER_IMPORT: tuple[Replacement, ...] = (_profiles,)
REPLACEMENTS = BEFORE_IMPORT + AFTER_IMPORT


def import_suite(backend: str, *, opened: bool, on_cpu: bool = False) -> ModuleType:
    """Imports the suite for a backend. WORLD_SIZE and BACKEND are in the environment already."""
    from torch.testing._internal.common_distributed import DistTestCases

    DistTestCases.backend_feature["plugin"].add(backend)
    if on_cpu:
        open_devices()
    else:
        _skip_at_once()
    if opened:
        for replace in BEFORE_IMPORT:
            replace(backend)
    # A plain dictionary keeps the name's class, which the environment would not.
    name = OpenName(backend) if opened else backend
    with mock.patch.object(os, "environ", {**os.environ, "BACKEND": name}):
        if on_cpu:
            import_rewritten()
        from torch.testing._internal.distributed import distributed_test as suite
    if opened:
        for replace in AFTER_IMPORT:
            replace(backend)
    return suite
