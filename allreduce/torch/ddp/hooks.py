"""Hooks on tensors, and hooks in place of a bucket's allreduce, as torch's wrapper takes them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from allreduce.torch.ddp.buckets import Bucket

__all__ = ["BucketHook", "GradBucket", "HookWork", "remove", "weak_hook"]

_Function: TypeAlias = Callable[[Any, Any], "torch.futures.Future[Tensor]"]


class GradBucket:
    """What a hook is given: the methods of torch.distributed.GradBucket, over one of our buckets.

    Between gradients the buffer may have gaps, which are zeros.
    """

    def __init__(
        self,
        index: int,
        buffer: Tensor,
        gradients: Sequence[Tensor],
        parameters: Sequence[Tensor],
        *,
        is_last: bool,
    ) -> None:
        self._index, self._buffer, self._is_last = index, buffer, is_last
        self._gradients, self._parameters = list(gradients), list(parameters)

    def index(self) -> int:
        """The bucket's number in this pass, from 0."""
        return self._index

    def buffer(self) -> Tensor:
        """The gradients, not divided, as one flat tensor."""
        return self._buffer

    def set_buffer(self, tensor: Tensor) -> None:
        """Replaces the buffer."""
        self._buffer = tensor

    def gradients(self) -> list[Tensor]:
        """Views into the memory of the first buffer, one for each parameter."""
        return self._gradients

    def parameters(self) -> list[Tensor]:
        """The parameters whose gradients these are."""
        return self._parameters

    def is_last(self) -> bool:
        """Whether it is the last bucket of this pass."""
        return self._is_last


@dataclass(slots=True)
class HookWork:
    """A bucket on which a hook works."""

    future: Any
    flat: Tensor

    def wait(self) -> None:
        """Waits for the hook's result, and moves it to the bucket."""
        result = self.future.wait()
        if isinstance(result, (list, tuple)):
            result = result[0]
        if result.data_ptr() != self.flat.data_ptr():
            self.flat.copy_(result.view_as(self.flat))


@dataclass(frozen=True, slots=True)
class BucketHook:
    """A function and its state: it is called for each bucket, in the same order on all ranks."""

    state: Any
    function: _Function

    def run(
        self,
        bucket: Bucket,
        index: int,
        *,
        places: Sequence[Tensor],
        parameters: Sequence[Tensor],
        is_last: bool,
    ) -> HookWork:
        """Begins the reduction of a bucket."""
        given = GradBucket(index, bucket.flat, places, parameters, is_last=is_last)
        return HookWork(self.function(self.state, given), bucket.flat)


def weak_hook(method: Callable[[Any, Any], None], first: Any) -> Callable[[Any], None]:
    """A hook on a tensor that does not keep the method's object alive: tensors may outlive it."""
    reference = weakref.WeakMethod(method)

    def hook(argument: Any) -> None:
        alive = reference()
        if alive is not None:
            alive(first, argument)

    return hook


def remove(handles: Sequence[Any]) -> None:
    """Takes hooks off their tensors."""
    for handle in handles:
        handle.remove()
