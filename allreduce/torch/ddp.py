"""Data-parallel training: every rank has the module, gradients are reduced during backprop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from allreduce.errors import UsageError
from allreduce.torch import communicator
from allreduce.torch.agreement import check_agreement
from allreduce.torch.bucket_size import AUTO, DEFAULT, BucketBytes
from allreduce.torch.buckets import check_dtype
from allreduce.torch.reducer import Reducer
from allreduce.torch.streams import DEVICES
from allreduce.torch.wire import check_wire_dtype

if TYPE_CHECKING:
    import torch.distributed as dist

    from allreduce.communicator import Communicator

__all__ = ["DistributedDataParallel"]


class DistributedDataParallel(nn.Module):
    """Wraps a module: after `loss.backward()` every `.grad` is reduced over all ranks.

    Gradients live in flat buckets of shared memory, or of the GPU's. A bucket is reduced as soon as
    it is complete, while backprop goes on. `.grad` becomes a view of a bucket, which the next
    backward pass overwrites: copy what you keep. Buffers, batch normalisation statistics among
    them, stay local.

    With `wire_dtype` float32 gradients travel as bfloat16 or float16, half as many bytes, and
    `.grad` stays a float32 tensor of its own. The mean's division is done in float32, before. Then
    each gradient is rounded once, and each sum of two once more: additions are done in float32 and
    their results rounded at once (docs/design.md, "Canonical order"). With k ranks and u = 2^-8 for
    bfloat16, 2^-11 for float16, an element is off by at most ((1 + u)^k - 1) times the sum of the
    ranks' absolute values, and all ranks get the same bits. float16 overflows above 65504.

    On a GPU all of it is enqueued: at the end of the backward pass the current stream waits for
    what is not reduced yet, and the host goes on.

    Args:
        module: on the CPU or one GPU, with the same parameters on every rank.
        process_group: of backend "hier"; None for the default group.
        bucket_bytes: most bytes of a bucket; 0 reduces each gradient by itself. "auto" measures the
            first backward passes, then takes what should end first by the communicator's tuning.
        wire_dtype: torch.bfloat16 or torch.float16, in which float32 gradients travel; None: as
            they are. Gradients of other dtypes always travel as they are.
        op: "mean" divides the sum of the gradients by the number of ranks, "sum" does not.
        algo: of the allreduce between nodes, see `Communicator.allreduce`.
        broadcast_parameters: begin with rank 0's parameters and buffers everywhere.
        find_unused_parameters: some parameters may have no gradient, on some ranks or on all. Costs
            one small allreduce for each backward pass, on the host, which on a GPU waits for it.

    Raises:
        UsageError: an argument cannot work. From `backward`: a parameter got no gradient, or two.
        MismatchError: ranks disagree about parameters or arguments.
    """

    _reduces_alone = False  # a measurement's subclass: hooks and buckets on one rank, too

    def __init__(
        self,
        module: nn.Module,
        *,
        process_group: dist.ProcessGroup | None = None,
        bucket_bytes: BucketBytes = DEFAULT,
        wire_dtype: torch.dtype | None = None,
        op: str = "mean",
        algo: str = "auto",
        broadcast_parameters: bool = True,
        find_unused_parameters: bool = False,
    ) -> None:
        super().__init__()
        if op not in ("mean", "sum"):
            raise UsageError(f'op={op!r}: must be "mean" or "sum"')
        if bucket_bytes != AUTO and (not isinstance(bucket_bytes, int) or bucket_bytes < 0):
            raise UsageError(f'bucket_bytes={bucket_bytes!r}: must be 0 or more, or "auto"')
        check_wire_dtype(wire_dtype)
        trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        _check_parameters(module, trained)
        self.module = module
        self._sync = True
        self._reducer: Reducer | None = None
        comm = communicator(process_group)
        if comm.world_size == 1 and not self._reduces_alone:
            return
        _check_devices(module)
        options = f"bucket_bytes={bucket_bytes} {wire_dtype=} op={op} algo={algo} "
        options += f"{find_unused_parameters=}"
        check_agreement(comm, "DistributedDataParallel", [options, *_described(module)])
        if broadcast_parameters:
            _broadcast(comm, [*module.parameters(), *module.buffers()])
        self._reducer = Reducer(
            [name for name, _ in trained],
            [parameter for _, parameter in trained],
            comm,
            bucket_bytes=bucket_bytes,
            wire_dtype=wire_dtype,
            mean=op == "mean",
            algo=algo,
            find_unused=find_unused_parameters,
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the module."""
        reducer = self._reducer
        if reducer is None or not torch.is_grad_enabled():
            return self.module(*args, **kwargs)
        reducer.prepare(self._sync)
        output = self.module(*args, **kwargs)
        reducer.mark(output, self._sync)
        return output

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Inside, gradients are added up locally; the first pass outside reduces them all.

        The forward pass decides, wherever its backward pass is run: it must be inside. A backward
        pass through several graphs reduces if one of them was made outside.
        """
        before, self._sync = self._sync, False
        try:
            yield
        finally:
            self._sync = before

    def statistics(self) -> dict[str, Any]:
        """Returns what this rank has counted so far.

        `exposed_seconds`: this process's waiting for reductions after backprop, which on a GPU is
        next to nothing, since the stream waits; `bytes_reduced`: of gradients, as they travel;
        `passes`: backward passes that reduced; `buckets`: how many there are; `bucket_bytes`: of
        the largest that there may be; `largest_bucket_bytes`: of the largest that there is, as it
        travels.
        """
        reducer = self._reducer
        return {
            "exposed_seconds": reducer.exposed_seconds if reducer else 0.0,
            "bytes_reduced": reducer.bytes_reduced if reducer else 0,
            "passes": reducer.passes if reducer else 0,
            "buckets": reducer.num_buckets if reducer else 0,
            "bucket_bytes": reducer.bucket_bytes if reducer else 0,
            "largest_bucket_bytes": reducer.largest_bucket_bytes if reducer else 0,
        }


def _check_parameters(module: nn.Module, trained: Sequence[tuple[str, Tensor]]) -> None:
    if not trained:
        raise UsageError("module: none of its parameters requires a gradient; nothing to reduce")
    for name, parameter in trained:
        check_dtype(name, parameter)


def _check_devices(module: nn.Module) -> None:
    tensors = [*module.named_parameters(), *module.named_buffers()]
    for name, tensor in tensors:
        if tensor.device.type == "cpu" or tensor.device.type in DEVICES:
            continue
        raise UsageError(f"module: {name} is on {tensor.device}; move it to the CPU or a GPU first")
    first, *rest = list(module.named_parameters()) or tensors or [("", torch.empty(0))]
    for name, parameter in rest:
        if parameter.device != first[1].device:
            raise UsageError(
                f"module: {name} is on {parameter.device}, {first[0]} on {first[1].device}; all "
                "parameters must be on one device, use module.to(device)"
            )


def _described(module: nn.Module) -> list[str]:
    """One line for each parameter and buffer: what must be the same on all ranks."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return [
        f"{name}: {str(t.dtype).removeprefix('torch.')}{list(t.shape)}"
        + (" trained" if t.requires_grad else "")
        for name, t in tensors
    ]


@torch.no_grad()
def _broadcast(comm: Communicator, tensors: Sequence[Tensor]) -> None:
    """Overwrites tensors by those of rank 0; one message for each dtype and device."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for same in kinds.values():
        flat = torch.cat([tensor.flatten() for tensor in same])
        comm.broadcast(flat.view(torch.uint8))
        parts = torch.split(flat, [tensor.numel() for tensor in same])
        for tensor, part in zip(same, parts, strict=True):
            tensor.copy_(part.view_as(tensor))
