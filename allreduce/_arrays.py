"""Where an array lives: address, count and dtype of NumPy arrays, torch tensors, DLPack objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

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
    """A contiguous, writable array as the core sees it."""

    address: int
    count: int
    dtype: str
    owner: Any  # keeps the memory alive

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return self.count * itemsize(self.dtype)


def itemsize(dtype: str) -> int:
    """Bytes of one element of a dtype of `DTYPES`; UsageError for another."""
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype}: not supported; use one of {', '.join(DTYPES)}")
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def memory_of(array: Any, argument: str, rank: int) -> Memory:
    """Return the memory of a NumPy array, a torch CPU tensor, or a DLPack object on the CPU.

    Raises:
        UsageError: the array is not contiguous, read-only, on a GPU, or of another dtype.
    """
    where = f"{argument} on rank {rank}"
    if isinstance(array, np.ndarray):
        return _of_numpy(array, where)
    if type(array).__module__.partition(".")[0] == "torch" and hasattr(array, "data_ptr"):
        return _of_torch(array, where)
    if hasattr(array, "__cuda_array_interface__"):
        raise UsageError(
            f"{where}: is on a GPU, this group has CPU ranks only; copy it to the host first"
        )
    if hasattr(array, "__dlpack__"):
        try:
            return _of_numpy(np.from_dlpack(array), where)
        except (BufferError, TypeError, RuntimeError) as error:
            raise UsageError(f"{where}: {error}; pass a writable array in host memory") from error
    raise UsageError(
        f"{where}: a {type(array).__name__} is no array; pass a NumPy array, a torch tensor, or an "
        "object with __dlpack__"
    )


def copy_of(array: Any, argument: str, rank: int) -> Any:
    """Return a contiguous copy: a torch tensor of a torch tensor, else a NumPy array.

    Raises:
        UsageError: as `memory_of`.
    """
    owner = memory_of(array, argument, rank).owner
    return owner.copy() if isinstance(owner, np.ndarray) else owner.detach().clone()


def _of_numpy(array: np.ndarray[Any, Any], where: str) -> Memory:
    name = array.dtype.name
    itemsize(name) if array.dtype.isnative else _refuse(where, "has foreign byte order")
    if not array.flags.aligned:
        _refuse(where, "is not aligned to its element size; pass a copy")
    if not array.flags.c_contiguous:
        _refuse(where, "is not contiguous; pass np.ascontiguousarray(x)")
    if not array.flags.writeable:
        _refuse(where, "is read-only; pass a copy")
    return Memory(array.ctypes.data, array.size, name, array)


def _of_torch(tensor: Any, where: str) -> Memory:
    name = str(tensor.dtype).removeprefix("torch.")
    itemsize(name)
    if tensor.device.type != "cpu":
        _refuse(where, f"is on {tensor.device}, this group has CPU ranks only; pass x.cpu()")
    if tensor.layout is not _strided() or not tensor.is_contiguous():
        _refuse(where, "is not contiguous; pass x.contiguous()")
    return Memory(tensor.data_ptr(), tensor.numel(), name, tensor)


def _strided() -> Any:
    import torch  # the caller has a tensor: it is there

    return torch.strided


def _refuse(where: str, problem: str) -> None:
    raise UsageError(f"{where}: {problem}")
