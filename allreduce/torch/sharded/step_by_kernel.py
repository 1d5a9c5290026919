"""A step of ShardedSGD as one kernel, over memory that the GPUs of a node map from each other."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from allreduce import _C, cuda
from allreduce.communicator import device_streams
from allreduce.cuda.local_stage import STAGES, VARIABLE
from allreduce.errors import AbortedError, Error, Timeout, UsageError
from allreduce.torch import streams

if TYPE_CHECKING:
    from allreduce.communicator.communicator import Communicator
    from allreduce.communicator.work import Work

__all__ = ["FusedStep", "NodeMemory", "try_map_peer_memory"]

_MOST_RANKS = 8
_ALIGN = 256  # bytes
_WORD = 4  # bytes
_ABORTED = 255  # an error word; else 1 + the rank that was not there: csrc/cuda/barrier_body.h
_LONGEST = 1e8  # seconds that a kernel can be told to wait


def kernels_on(device: torch.device) -> Any | None:
    """What has the kernel for a device; None where there is none."""
    return cuda.kernels() if device.type == "cuda" else None


class NodeMemory:
    """Flat gradients, flat parameters and signals of each rank of a node, which all ranks map."""

    def __init__(
        self,
        comm: Communicator,
        kernels: Any,
        device: torch.device,
        count: int,
        importer: np.ndarray[Any, Any],
    ) -> None:
        self.kernels, self.device, self.count = kernels, device, count
        self._floats = -(-count * _WORD // _ALIGN) * _ALIGN  # bytes of a flat array
        self._nbytes = 2 * self._floats + int(kernels.signals_bytes())
        self.shared = _C.SharedDeviceMemory(
            runtime=device_streams.runtime(),
            device=device.index or 0,
            local_size=comm.world_size,
            local_rank=comm.rank,
            nbytes=self._nbytes,
            importer=importer,
        )

    def show(self, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        """The own gradients and parameters, float32, and signals, int32, as tensors; all zero."""
        whole = _show(self.shared.address(rank), self._nbytes, self.device, self.shared).zero_()
        begin, end = self._floats, self._floats + self.count * _WORD
        gradients, flat = whole[: self.count * _WORD], whole[begin:end]
        return (
            gradients.view(torch.float32),
            flat.view(torch.float32),
            whole[2 * self._floats :].view(torch.int32),
        )

    def addresses(self, ranks: int) -> tuple[list[int], list[int], list[int]]:
        """Where gradients, parameters and signals of all ranks are for this process."""
        bases = [self.shared.address(rank) for rank in range(ranks)]
        places = (0, self._floats, 2 * self._floats)
        gradients, flat, signals = ([base + place for base in bases] for place in places)
        return gradients, flat, signals

    @property
    def abort_word(self) -> int:
        """Its offset: of the last words but one of the signals."""
        return self._nbytes - 2 * _WORD


def try_map_peer_memory(
    comm: Communicator, like: Tensor, count: int, *, wanted: bool = True
) -> tuple[NodeMemory | None, str]:
    """Memory for `count` elements on each rank; or None, and why. All ranks call it."""
    if not wanted:
        return None, "fused=False asks for it"
    if comm.num_nodes > 1:
        return None, f"ranks are on {comm.num_nodes} nodes, and a kernel reaches those of its own"
    if not 2 <= comm.world_size <= _MOST_RANKS:
        return None, f"there are {comm.world_size} ranks, and it takes 2 to {_MOST_RANKS}"
    memory, reason = None, _obstacle(like)
    importer = comm.symmetric_empty(_C.SharedDeviceMemory.importer_bytes(), "uint8")
    if not reason:
        try:
            memory = NodeMemory(comm, kernels_on(like.device), like.device, count, importer)
        except (Error, OSError) as error:
            reason = str(error)
    mine = np.frombuffer(memory.shared.handle if memory else bytes(64), np.uint8)
    handles = comm.allgather(mine.reshape(1, -1).copy())
    able = handles.any(1)
    if memory and able.all():
        try:
            memory.shared.open([handle.tobytes() for handle in handles])
        except (Error, OSError) as error:
            reason = str(error)
    opened = comm.allgather(np.array([memory is not None and not reason])).ravel()
    failed = np.flatnonzero(~(able & opened))
    if memory and not failed.size:
        return memory, ""
    return None, reason or f"it cannot be on rank {failed[0]}"


def _obstacle(like: Tensor) -> str:
    if like.dtype != torch.float32:
        return f"parameters are {str(like.dtype).removeprefix('torch.')}, and it takes float32"
    if kernels_on(like.device) is None:
        return f"there is no kernel for parameters on {like.device}"
    asked = os.environ.get(VARIABLE, "auto")
    if "peer" not in STAGES.get(asked, ()):
        return f"{VARIABLE}={asked} asks for another way"
    return ""


class FusedStep:
    """Reduce-scatter, SGD on the own shard and allgather of each group: one kernel.

    The ranks' hosts agree on a step beside the kernels, and hear of each other's errors one step
    later: so none is more than a step ahead. A kernel waits for its peers until the group's
    timeout, or until the group fails.
    """

    def __init__(self, comm: Communicator, memory: NodeMemory, ends: Sequence[int]) -> None:
        self.gradients, self.flat, self._signals = memory.show(comm.rank)
        self._comm, self._memory = comm, memory
        self._bounds = list(zip([0, *ends], ends, strict=False))
        self._addresses = memory.addresses(comm.world_size)
        self._shards = [self._shard(begin, end) for begin, end in self._bounds]
        self._momenta: list[Tensor | None] = [None] * len(ends)
        on_gpu = memory.device.type == "cuda"
        self._error = torch.zeros(1, dtype=torch.int32, pin_memory=on_gpu)
        self._agreed: Work | None = None
        comm._group.raise_on_failure(memory.shared, memory.abort_word)
        if on_gpu:
            torch.cuda.synchronize(memory.device)
        comm.barrier()  # all signals are zero

    def _shard(self, begin: int, end: int) -> tuple[int, int]:
        """This rank's part of a group, as a part of the flat arrays."""
        size, rank = self._comm.world_size, self._comm.rank
        first, last = self._memory.kernels.shard_of(end - begin, size, rank)
        return begin + first, begin + last

    def step(self, groups: Sequence[Mapping[str, Any]], scale: float, name: str) -> None:
        """Enqueues a step of all groups. scale: of the gradients. name: the same on all ranks."""
        self.raise_errors()
        byte = np.zeros(1, np.uint8)
        self._agreed = self._comm.allreduce(byte, "max", async_op=True, name=name)
        with self._current() as stream:
            for number, group in enumerate(groups):
                self._launch(number, group, scale * group["gradient_scale"], stream)
            self._error.copy_(self._signals[-1:], non_blocking=True)

    def _launch(self, number: int, group: Mapping[str, Any], scale: float, stream: int) -> None:
        (begin, end), (first, last) = self._bounds[number], self._shards[number]
        gradients, flat, signals = self._addresses
        momentum = self._momenta[number]
        if momentum is None and group["momentum"]:
            momentum = self._momenta[number] = torch.zeros_like(self.flat[first:last])
        if begin == end:
            return
        own = flat[self._comm.rank] + _WORD * first
        # An empty tensor's address is 0, which to the kernel means no momentum; nothing is read.
        moved = (momentum.data_ptr() or own) if momentum is not None else 0
        self._memory.kernels.reduce_scatter_sgd_allgather(
            signals,
            self._comm.rank,
            min(self._comm._group.timeout, _LONGEST),
            [address + _WORD * begin for address in gradients],
            [address + _WORD * begin for address in flat],
            "float32",
            own,
            moved,
            [(end - begin, group["weight_decay"])],
            lr=group["lr"],
            momentum=group["momentum"],
            nesterov=group["nesterov"],
            scale=scale,
            stream=stream,
        )

    @contextlib.contextmanager
    def _current(self) -> Any:
        device = self._memory.device
        guard = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
        with guard:
            yield streams.handle(device)

    def raise_errors(self) -> None:
        """Raises what the last step ended with, as far as it is known."""
        if self._agreed:
            self._agreed.wait()  # knows more than the kernel, if the group has failed
            self._agreed = None
        code = int(self._error[0])
        if code == _ABORTED:
            raise AbortedError("a fused step of ShardedSGD was given up: its group has failed")
        if code:
            text = (
                f"rank {code - 1} did not come to a fused step of ShardedSGD within "
                f"{self._comm._group.timeout:g} s"
            )
            self._comm.abort(f"rank {self._comm.rank}: {text}")
            raise Timeout(text)

    def momenta(self) -> list[tuple[int, Tensor]]:
        """This rank's parts of the momentum, and where each begins in the flat arrays."""
        self.raise_errors()
        pairs = zip(self._shards, self._momenta, strict=True)
        return [(first, momentum) for (first, _), momentum in pairs if momentum is not None]

    def load(self, whole: Tensor) -> None:
        """Takes this rank's parts of a flat momentum."""
        self._momenta = [whole[first:last].clone() for first, last in self._shards]


class _Shown:
    """Device memory as `torch.as_tensor` takes it, which keeps this object."""

    def __init__(self, address: int, nbytes: int, owner: object) -> None:
        self._owner = owner
        self.__cuda_array_interface__ = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (address, False),
            "strides": None,
            "version": 3,
        }


def _show(address: int, nbytes: int, device: torch.device, owner: object) -> Tensor:
    """Bytes as a tensor that keeps their owner."""
    if device.type == "cuda":
        return torch.as_tensor(_Shown(address, nbytes, owner), device=device)
    if device.type != "cpu":
        raise UsageError(f"there are no tensors of memory on {device}")
    array = (ctypes.c_uint8 * nbytes).from_address(address)
    array.owner = owner  # type: ignore[attr-defined]
    return torch.frombuffer(array, dtype=torch.uint8)
