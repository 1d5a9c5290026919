"""Where an array lives: address, count and dtype of NumPy arrays, torch tensors, DLPack objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, NoReturn, get_args

import numpy as np

from allreduce.communicator.device_arrays import (
    DeviceArray,
    device_array,
    is_torch,
    on_device,
    plain_torch,
)
from allreduce.communicator.types import DType
from allreduce.errors import UsageError

DTYPES: tuple[str, ...] = get_args(DType)


@dataclass(frozen=True, slots=True)
class ArrayView:
    """A contiguous array as the core sees it."""

    address: int
    count: int
    dtype: str
    owner: Any  # keeps the memory alive
    device: DeviceArray | None = None  # None: in host memory
    shape: tuple[int, ...] | None = None  # None: not to be compared

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return self.count * itemsize(self.dtype)


def itemsize(dtype: str, where: str = "") -> int:
    """Bytes of one element of a dtype of `DTYPES`; UsageError for another, which begins `where`."""
    if dtype not in DTYPES:
        known = ", ".join(DTYPES)
        raise UsageError(f"{where}dtype {dtype}: not supported; use one of {known}")
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


class _WritableDlpack:
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


def memory_of(
    array: Any, argument: str, rank: int, *, writable: bool = True, in_place: bool | None = None
) -> ArrayView:
    """Return the memory of an array in host or GPU memory.

    array: a NumPy array, a torch tensor, or an object with `__array_interface__`,
        `__cuda_array_interface__` or DLPack.
    writable: the core will write to it.
    in_place: it must be the caller's own memory, no copy that the array makes of itself; as
        `writable` where None.

    Raises:
        UsageError: the array is not contiguous, read-only, of another dtype, or shows a copy.
    """
    where = f"{argument} on rank {rank}"
    if isinstance(array, np.ndarray):
        return _of_numpy(array, where, writable)
    if on_device(array):
        found = device_array(array, where, writable=writable)
        itemsize(found.dtype, f"{where}: ")
        return ArrayView(found.address, found.count, found.dtype, array, found, found.shape)
    if is_torch(array):
        return _of_torch(array, where)
    in_place = writable if in_place is None else in_place
    if in_place and isinstance(array, np.generic):
        kind = type(array).__name__
        _refuse(
            where,
            f"a scalar (numpy.{kind}) cannot change in place; pass np.array(x), and use what the "
            "call returns, or the result of allgather",
        )
    if hasattr(array, "__array_interface__"):
        return _of_numpy(_shared(lambda: np.asarray(array), where, in_place), where, writable)
    if hasattr(array, "__dlpack__"):
        try:
            view = _shared(lambda: np.asarray(_WritableDlpack(array)), where, in_place)
        except (BufferError, TypeError, RuntimeError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"{where}: {error}; pass a writable array in host memory") from error
        return _of_numpy(view, where, writable)
    raise UsageError(
        f"{where}: a {type(array).__name__} is no array; pass a NumPy array, a torch tensor, or an "
        f"object with __array_interface__ or __dlpack__{_remedy(array)}"
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


def _shared(view: Callable[[], Any], where: str, in_place: bool) -> Any:
    """Return an object as NumPy sees it; refuse one that makes a copy for who looks."""
    first = view()
    # While one copy lives, another cannot lie at its address.
    if in_place and first.size > 0 and first.ctypes.data != view().ctypes.data:
        _refuse(
            where,
            "shows a copy of its memory, which no result would leave; pass np.array(x), and use "
            "what the call returns",
        )
    return first


def _of_numpy(array: np.ndarray[Any, Any], where: str, writable: bool) -> ArrayView:
    name = array.dtype.name
    if not array.dtype.isnative:
        _refuse(where, "has foreign byte order")
    itemsize(name, f"{where}: ")
    if not array.flags.c_contiguous:
        _refuse(where, "is not contiguous; pass np.ascontiguousarray(x)")
    if writable and not array.flags.writeable:
        _refuse(where, "is read-only; pass a copy")
    return ArrayView(array.ctypes.data, array.size, name, array, shape=array.shape)


def _of_torch(tensor: Any, where: str) -> ArrayView:
    address, shape, name = plain_torch(tensor, where)
    itemsize(name, f"{where}: ")
    return ArrayView(address, prod(shape), name, tensor, shape=shape)


def _remedy(array: Any) -> str:
    """What to write where an object has a buffer, which NumPy can share."""
    try:
        memoryview(array)
    except TypeError:
        return ""
    return "; np.asarray(x) shares the memory of this one"


def _refuse(where: str, problem: str) -> NoReturn:
    raise UsageError(f"{where}: {problem}")
