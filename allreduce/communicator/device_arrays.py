"""Arrays in device memory: what `__cuda_array_interface__`, DLPack and torch say of them."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from math import prod
from typing import Any, NoReturn

import numpy as np

from allreduce import _C
from allreduce.errors import UsageError

# DLPack's numbers.
_CPU_DEVICES = (1, 3)  # host memory, and pinned host memory
_CUDA_DEVICES = (2, 13)  # device memory, and managed memory
_CODES = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 6: "bool"}
RUNTIME_VARIABLE = "ALLREDUCE_DEVICE_RUNTIME"
LEGACY_STREAM = 1  # CUDA's default stream, as `__cuda_array_interface__` and DLPack number it


@dataclass(frozen=True, slots=True)
class DeviceArray:
    """A contiguous array in device memory.

    device: its index, or None where the pointer must be asked.
    stream: the handle of the stream that its content is ordered by.
    """

    address: int
    shape: tuple[int, ...]
    dtype: str
    device: int | None
    stream: int
    owner: Any

    @property
    def count(self) -> int:
        """Elements of the array."""
        return prod(self.shape)


def on_device(array: Any) -> bool:
    """Return whether an object says that it is not in host memory."""
    if is_torch(array):
        return bool(array.device.type != "cpu")
    if hasattr(array, "__cuda_array_interface__"):
        return True
    if hasattr(array, "__dlpack_device__") and not hasattr(array, "__array_interface__"):
        return array.__dlpack_device__()[0] not in _CPU_DEVICES
    return False


def device_array(array: Any, where: str, *, writable: bool = True) -> DeviceArray:
    """Describe an array for which `on_device` is true.

    Raises:
        UsageError: it is not contiguous, read-only, of another dtype, or on another sort of device.
    """
    if is_torch(array):
        return _of_torch(array, where)
    if hasattr(array, "__cuda_array_interface__"):
        return _of_interface(array, array.__cuda_array_interface__, where, writable)
    return _of_dlpack(array, where, writable)


def runs_on_cpu() -> bool:
    """Return whether the CPU takes the place of GPUs, for tests."""
    return os.environ.get(RUNTIME_VARIABLE, "").startswith("cpu")


def is_torch(array: Any) -> bool:
    """Return whether it is a torch tensor, of a subclass too, without importing torch."""
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)  # absent while torch is imported
    return tensor is not None and isinstance(array, tensor)


def plain_torch(tensor: Any, where: str) -> tuple[int, tuple[int, ...], str]:
    """Return address, shape and dtype of a tensor whose elements lie in memory as they are.

    Raises:
        UsageError: they do not: it is sparse, nested, wrapped, a negative view, or not contiguous.
    """
    import torch  # the caller has a tensor: it is there

    try:
        if tensor.is_nested:
            _refuse(where, "is nested; pass its tensors one by one")
        if tensor.layout is not torch.strided:
            _refuse(where, f"has the layout {tensor.layout}; pass x.to_dense()")
        if tensor.is_neg():  # in memory lie the negated elements
            _refuse(where, "is a negative view of other memory; pass x.resolve_neg()")
        if not tensor.is_contiguous():
            _refuse(where, "is not contiguous; pass x.contiguous()")
        name = str(tensor.dtype).removeprefix("torch.")
        address, shape = tensor.data_ptr(), tuple(tensor.shape)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        if isinstance(error, UsageError):
            raise
        _refuse(where, f"this {type(tensor).__name__} has no memory of its own: {error}")
    if address == 0 and prod(shape) > 0:
        _refuse(where, f"this {type(tensor).__name__} has no memory; pass a tensor that has data")
    return address, shape, name


def _of_torch(tensor: Any, where: str) -> DeviceArray:
    import torch  # the caller has a tensor: it is there

    kind = tensor.device.type
    if kind == "meta":
        _refuse(where, "is on the device meta, so it has no data; pass a tensor that has")
    if kind == "cuda":
        stream = torch.cuda.current_stream(tensor.device).cuda_stream
    elif kind == "privateuseone" and runs_on_cpu():
        stream = torch.accelerator.current_stream(tensor.device).stream_id  # the runtime's handle
    else:
        _refuse(where, f"is on {tensor.device}; pass x.cpu(), or a CUDA tensor")
    address, shape, name = plain_torch(tensor, where)
    return DeviceArray(address, shape, name, tensor.device.index, stream, tensor)


def _of_interface(array: Any, interface: dict[str, Any], where: str, writable: bool) -> DeviceArray:
    """Read `__cuda_array_interface__`, versions 2 and 3."""
    try:
        shape = tuple(int(n) for n in interface["shape"])
        dtype = np.dtype(interface["typestr"])
        address, read_only = interface["data"]
    except (KeyError, TypeError, ValueError) as error:
        _refuse(where, f"its __cuda_array_interface__ cannot be read: {error!r}")
    if interface.get("mask") is not None:
        _refuse(where, "is a masked array; pass its data")
    if not dtype.isnative:
        _refuse(where, "has foreign byte order")
    stream = interface.get("stream")
    if stream == 0:
        _refuse(where, "names stream 0, which __cuda_array_interface__ forbids: 1 is the default")
    _check_contiguous(shape, interface.get("strides"), dtype.itemsize, where)
    if writable and read_only:
        _refuse(where, "is read-only; pass a copy")
    return DeviceArray(int(address), shape, dtype.name, None, int(stream or LEGACY_STREAM), array)


def _of_dlpack(array: Any, where: str, writable: bool) -> DeviceArray:
    kind, index = array.__dlpack_device__()
    if kind not in _CUDA_DEVICES:
        _refuse(where, f"is on DLPack's device type {kind}; pass an array in host or CUDA memory")
    try:  # the producer makes this stream wait for whatever fills the array
        capsule = array.__dlpack__(stream=LEGACY_STREAM)
        found = _C.read_dlpack(capsule)
    except (BufferError, TypeError, RuntimeError, UsageError) as error:
        _refuse(where, f"DLPack: {error}")
    code, bits, lanes = found["dtype"]
    name = f"{_CODES.get(code, '?')}{'' if code == 6 else bits}"
    if lanes != 1 or code not in _CODES:
        _refuse(where, f"has DLPack's dtype (code {code}, {bits} bits, {lanes} lanes)")
    size = max(1, bits // 8)
    strides = found["strides"]
    in_bytes = None if strides is None else tuple(size * n for n in strides)
    _check_contiguous(found["shape"], in_bytes, size, where)
    if writable and found["read_only"]:
        _refuse(where, "is read-only; pass a copy")
    shape, owner = tuple(found["shape"]), (array, capsule)
    return DeviceArray(found["address"], shape, name, index, LEGACY_STREAM, owner)


def _check_contiguous(
    shape: tuple[int, ...], strides: tuple[int, ...] | None, itemsize: int, where: str
) -> None:
    if strides is None or prod(shape) == 0:
        return
    expected = itemsize
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length > 1 and stride != expected:
            _refuse(where, "is not contiguous; pass a contiguous copy")
        expected *= length


def _refuse(where: str, problem: str) -> NoReturn:
    raise UsageError(f"{where}: {problem}")
