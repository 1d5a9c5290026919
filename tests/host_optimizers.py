"""The GPU's SGD and LARS on the CPU, with the functions of allreduce._cuda."""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import host_kernels

from allreduce._C import OptimizerTensors

# (parameters, momenta, gradients, count, weight_decay, correction or trust)
Tensor = tuple[int, int, int, int, float, float]
Tensors = Sequence[Tensor] | OptimizerTensors


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("parameters", ctypes.c_void_p),
        ("momenta", ctypes.c_void_p),
        ("gradients", ctypes.c_void_p),
        ("count", ctypes.c_size_t),
        ("weight_decay", ctypes.c_double),
        ("last", ctypes.c_double),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        ("form", ctypes.c_int),
        ("lr", ctypes.c_double),
        ("momentum", ctypes.c_double),
        ("scale", ctypes.c_double),
        ("nesterov", ctypes.c_bool),
    )


class HostOptimizers:
    """The block bodies, compiled by g++; `tensors` counts what steps have been given so far."""

    def __init__(self, folder: Path) -> None:
        self._library = host_kernels.library("host_sgd", folder)
        self._library.host_lars_workspace.restype = ctypes.c_size_t
        self._library.host_sgd_ranges.restype = ctypes.c_long
        self.tensors = 0

    def sgd(
        self,
        tensors: Tensors,
        dtype: str,
        *,
        lr: float,
        momentum: float,
        nesterov: bool,
        form: str = "reference",
        scale: float = 1.0,
        copy: int = 0,
        stream: int = 0,
    ) -> None:
        """As `_cuda.sgd`."""
        step = _Step(form == "absorbed", lr, momentum, scale, nesterov)
        self._call("host_sgd", tensors, dtype, step, copy)

    def ranges(self, tensors: Tensors) -> int:
        """How many ranges the kernels are given for these f32 tensors."""
        return int(self._library.host_sgd_ranges(*_array(tensors)))

    def lars_workspace(self, counts: Sequence[int]) -> int:
        """As `_cuda.lars_workspace`."""
        array = (ctypes.c_size_t * len(counts))(*counts)
        return int(self._library.host_lars_workspace(array, ctypes.c_size_t(len(counts))))

    def lars(
        self,
        tensors: Tensors,
        dtype: str,
        workspace: int,
        *,
        lr: float,
        momentum: float,
        nesterov: bool,
        scale: float = 1.0,
        stream: int = 0,
    ) -> None:
        """As `_cuda.lars`."""
        step = _Step(0, lr, momentum, scale, nesterov)
        self._call("host_lars", tensors, dtype, step, workspace)

    def _call(self, name: str, tensors: Tensors, dtype: str, step: _Step, address: int) -> None:
        self.tensors += len(tensors)
        function = getattr(self._library, name)
        status = function(
            *_array(tensors), dtype.encode(), ctypes.byref(step), ctypes.c_void_p(address)
        )
        if status != 0:
            raise ValueError(f"{name} has printed why")


def _array(tensors: Tensors) -> tuple[ctypes.Array[_Tensor], ctypes.c_size_t]:
    array = _Tensor * len(tensors)
    if isinstance(tensors, OptimizerTensors):
        rows = array.from_address(tensors.address) if len(tensors) else array()
    else:
        rows = array(*(_Tensor(*t) for t in tensors))
    return rows, ctypes.c_size_t(len(tensors))
