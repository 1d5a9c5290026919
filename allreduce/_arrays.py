"""Where an array lives: address, count and dtype of NumPy arrays, torch tensors, DLPack objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from allreduce._device_arrays import DeviceArray, device_array, is_torch, on_device
from allreduce.errors import UsageError

DTYPES = {
    "float64": "float64",
    "float32": "float32",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "int64": "int64",
    "int32": "int32",
    "int16": "int16",
    "int8": "int8",
    "uint8": "uint8",
    "bool": "bool",
}


@dataclass(frozen=True, slots=True)
class Memory:
    """A contiguous array as the core sees it."""

    address: int
    count: int
    dtype: str
    owner: Any  # keeps the memory alive
    device: DeviceArray | None = None  # None: in host memory

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return self.count * itemsize(self.dtype)


def itemsize(dtype: str) -> int:
    """Bytes of one element of a dtype of `DTYPES`; UsageError for another."""
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype}: not supported; use one of {', '.join(DTYPES)}")
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


class _Exposed:
    """Memory of a DLPack capsule without version, in which it cannot be marked as read-only.

    NumPy takes it as read-only to be on the safe side; but an exporter of read-only memory must
    refuse to make such a capsule.
    """

    def __init__(self, array: Any) -> None:
        self._array = array
        self._view = np.from_dlpack(self)
        self.__array_interface__ = {
            **self._view.__array_interface__,
            "data": (self._view.ctypes.data, False),
        }

    def __dlpack__(self, **_options: object) -> Any:
        return self._array.__dlpack__()

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


def memory_of(array: Any, argument: str, rank: int, *, writable: bool = True) -> Memory:
    """Return the memory of an array in host or GPU memory.

    array: a NumPy array, a torch tensor, or an object with `__array_interface__`,
        `__cuda_array_interface__` or DLPack.
    writable: the core will write to it.

    Raises:
        UsageError: the array is not contiguous, read-only, or of another dtype.
    """
    where = f"{argument} on rank {rank}"
    if isinstance(array, np.ndarray):
        return _of_numpy(array, where, writable)
    if on_device(array):
        found = device_array(array, where, writable=writable)
        itemsize(found.dtype)
        return Memory(found.address, found.count, found.dtype, array, found)
    if is_torch(array):
        return _of_torch(array, where)
    if hasattr(array, "__array_interface__"):
        return _of_numpy(np.asarray(array), where, writable)
    if hasattr(array, "__dlpack__"):
        try:
            return _of_numpy(np.asarray(_Exposed(array)), where, writable)
        except (BufferError, TypeError, RuntimeError) as error:
            raise UsageError(f"{where}: {error}; pass a writable array in host memory") from error
    raise UsageError(
        f"{where}: a {type(array).__name__} is no array; pass a NumPy array, a torch tensor, or an "
        "object with __array_interface__ or __dlpack__"
    )


def copy_of(array: Any, argument: str, rank: int) -> Any:
    """Return a contiguous copy: a torch tensor of a torch tensor, else NumPy's or CuPy's array.

    Raises:
        UsageError: as `memory_of`.
    """
    owner = memory_of(array, argument, rank, writable=False).owner
    if hasattr(owner, "detach"):
        return owner.detach().clone()
    if not hasattr(owner, "copy"):
        kind = type(owner).__name__
        _refuse(
            f"{argument} on rank {rank}",
            f"{kind} in GPU memory has no copy(); pass CuPy's or torch's",
        )
    return owner.copy()


def _of_numpy(array: np.ndarray[Any, Any], where: str, writable: bool) -> Memory:
    name = array.dtype.name
    itemsize(name) if array.dtype.isnative else _refuse(where, "has foreign byte order")
    if not array.flags.aligned:
        _refuse(where, "is not aligned to its element size; pass a copy")
    if not array.flags.c_contiguous:
        _refuse(where, "is not contiguous; pass np.ascontiguousarray(x)")
    if writable and not array.flags.writeable:
        _refuse(where, "is read-only; pass a copy")
    return Memory(array.ctypes.data, array.size, name, array)


def _of_torch(tensor: Any, where: str) -> Memory:
    name = str(tensor.dtype).removeprefix("torch.")
    itemsize(name)
    if tensor.layout is not _strided() or not tensor.is_contiguous():
        _refuse(where, "is not contiguous; pass x.contiguous()")
    return Memory(tensor.data_ptr(), tensor.numel(), name, tensor)


def _strided() -> Any:
    import torch  # the caller has a tensor: it is there

    return torch.strided


def _refuse(where: str, problem: str) -> None:
    raise UsageError(f"{where}: {problem}")
