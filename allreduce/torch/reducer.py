"""Reduces gradients while backprop goes on.

A parameter's hook moves its gradient into a bucket; complete buckets are reduced in the background,
strictly in the order of their index, which is the same on all ranks; a callback at the end of the
backward pass waits for all of them. (Goyal et al. 2017, section 4.2)

Gradients that travel in another dtype stay outside of their bucket: the complete bucket is packed,
and unpacked once it is reduced.

On a GPU nothing waits but streams: a reduction comes after what has filled its bucket, and what the
stream of the backward pass's caller does next comes after all reductions.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from allreduce.errors import UsageError
from allreduce.torch import buckets, streams, wire
from allreduce.torch.bucket_size import AUTO, DEFAULT, BucketBytes, Profile, agree
from allreduce.torch.outputs import tensors_in

if TYPE_CHECKING:
    from allreduce.communicator import Communicator

__all__ = ["Reducer"]


class Reducer:
    """The gradients of one module's parameters and their reduction.

    Its methods are called by the threads of the autograd engine, one at a time for CPU tensors.
    """

    def __init__(
        self,
        names: Sequence[str],
        parameters: Sequence[Tensor],
        comm: Communicator,
        *,
        bucket_bytes: BucketBytes,
        wire_dtype: torch.dtype | None,
        mean: bool,
        algo: str,
        find_unused: bool,
    ) -> None:
        self._names = tuple(names)
        self._parameters = tuple(parameters)
        self._comm = comm
        count = len(self._parameters)
        self._profile = Profile(count) if bucket_bytes == AUTO else None
        self.bucket_bytes = DEFAULT if bucket_bytes == AUTO else bucket_bytes
        self._wire_dtype = wire_dtype
        self._mean = mean
        self._share = 1.0 / comm.world_size
        self._algo = algo
        self._find_unused = find_unused
        self._members = self._plan(range(count)[::-1])
        self._allocate()
        self._sync = True  # whether a graph reduces that no output has marked
        self._reducing: bool | None = None  # whether this backward pass does; None: in none
        self._agreed = False  # the order of the buckets is that of a backward pass of rank 0's
        self._next = 0  # the first bucket that is not being reduced yet
        self._ready: list[int] = []  # parameters whose gradients have come, in this backward pass
        self._used = np.zeros(count, np.int32)  # had a gradient since the last reduction
        # With "sum": the .grad that holds a reduced value.
        self._reduced: list[Tensor | None] = [None] * count
        self.exposed_seconds = 0.0
        self.bytes_reduced = 0
        self.passes = 0
        handles = []
        for index, parameter in enumerate(self._parameters):
            hook = _weak(self._on_gradient, index)
            tensor: Any = parameter  # torch gives these two methods no types
            handles.append(tensor.register_post_accumulate_grad_hook(hook))
            if not mean:
                handles.append(tensor.register_hook(_weak(self._before_gradient, index)))
        weakref.finalize(self, _remove, handles)

    @property
    def num_buckets(self) -> int:
        """Buckets in use."""
        return len(self._buckets)

    @property
    def largest_bucket_bytes(self) -> int:
        """Bytes of the largest bucket, as it travels."""
        return max(bucket.flat.nbytes for bucket in self._buckets)

    def prepare(self, sync: bool) -> None:
        """Before a forward pass. sync: whether the backward pass of its graph reduces."""
        if self._reducing is not None and torch._C._current_graph_task_id() == -1:
            self._abandon()  # the last backward pass ended by an exception
        self._sync = sync
        for index, grad in enumerate(self._reduced):  # keep no memory that .grad has given up
            if self._parameters[index].grad is not grad:
                self._reduced[index] = None

    def mark(self, output: Any, sync: bool) -> None:
        """After a forward pass: its graph says by itself whether its backward pass reduces.

        Hooks of the outputs say so, before any gradient of a parameter comes. They see the
        outermost pass, even where checkpointing runs others inside.
        """
        hook = _weak(self._begin, sync)
        for tensor in tensors_in(output):
            if tensor.grad_fn is not None:
                tensor.register_hook(hook)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _begin(self, sync: bool, _: Any = None) -> None:
        """In a backward pass: through a graph that reduces, or not. If any does, the pass does."""
        if self._reducing is None:
            self._reducing = False
            torch.autograd.Variable._execution_engine.queue_callback(self._finish)
        if not sync or self._reducing:
            return
        self._reducing = True
        if self._profile:
            self._profile.begin()
        self._next = 0
        self._ready.clear()
        for bucket in self._buckets:
            bucket.missing, bucket.work = len(bucket.members), None
            bucket.streams.clear()

    def _plan(self, order: Sequence[int]) -> list[tuple[int, ...]]:
        return buckets.plan(self._parameters, order, self.bucket_bytes, self._wire_dtype)

    def _allocate(self) -> None:
        self._buckets, self._views = buckets.allocate(
            self._comm, self._parameters, self._members, self._wire_dtype
        )
        self._bucket_of = {i: bucket for bucket in self._buckets for i in bucket.members}

    def _before_gradient(self, index: int, _: Any) -> None:
        # A reduced sum that stays in .grad would be summed once more, by every rank: each gives its
        # share of it. (With mean the division by world_size does the same.)
        grad, self._reduced[index] = self._reduced[index], None
        if grad is not None and self._parameters[index].grad is grad:
            with torch.no_grad():
                grad.mul_(self._share)

    @torch.no_grad()
    def _on_gradient(self, index: int, _: Any) -> None:
        self._used[index] = 1
        if self._reducing is None:
            self._begin(self._sync)
        if not self._reducing:
            return
        bucket = self._bucket_of[index]
        if bucket.work is not None:
            raise UsageError(
                f"parameter {self._names[index]} got a gradient twice in one backward pass; with "
                "torch.utils.checkpoint pass use_reentrant=False"
            )
        self._fill(index)
        self._ready.append(index)
        if self._profile:
            self._profile.ready(index)
        bucket.missing -= 1
        if bucket.missing == 0:
            self._launch()

    def _fill(self, index: int) -> None:
        """Moves a gradient into its bucket; from then on .grad is its place there.

        One that is to be packed is left to `_launch`.
        """
        parameter, view, bucket = (
            self._parameters[index],
            self._views[index],
            self._bucket_of[index],
        )
        if (stream := streams.current(view.device)) is not None:
            bucket.streams.add(stream)
        grad = parameter.grad
        if grad is not None and grad.layout != torch.strided:
            raise UsageError(
                f"parameter {self._names[index]} has a sparse gradient; use a dense one "
                "(sparse=False in nn.Embedding)"
            )
        if bucket.packed:
            return
        if grad is None:
            view.zero_()
            return
        if self._mean:
            torch.mul(grad, self._share, out=view)
        elif grad is not view:
            view.copy_(grad)
        if grad is not view:
            parameter.grad = view

    def _launch(self) -> None:
        while self._next < len(self._buckets) and self._buckets[self._next].missing == 0:
            bucket = self._buckets[self._next]
            self._next += 1
            self._wait_for_streams(bucket)
            if bucket.packed:
                scale = self._share if self._mean else 1.0
                wire.pack(bucket.flat, self._places(bucket), self._gradients(bucket), scale)
            bucket.work = self._comm.allreduce(
                bucket.flat, "sum", self._algo, async_op=True, name=bucket.name
            )
            self.bytes_reduced += bucket.flat.nbytes

    def _places(self, bucket: buckets.Bucket) -> list[Tensor]:
        return [self._views[index] for index in bucket.members]

    def _gradients(self, bucket: buckets.Bucket) -> list[Tensor | None]:
        return [self._parameters[index].grad for index in bucket.members]

    def _wait_for_streams(self, bucket: buckets.Bucket) -> None:
        """On a device: what this thread enqueues next comes after what was done to the bucket."""
        here = streams.current(bucket.flat.device)
        if here is not None:
            streams.wait_for(bucket.streams, here)
            bucket.streams.add(here)

    @torch.no_grad()
    def _finish(self) -> None:
        """At the end of the backward pass: every .grad is reduced when it returns."""
        try:
            if self._reducing and (self._ready or self._find_unused):
                self._reduce_rest()
        finally:
            self._reducing = None

    def _reduce_rest(self) -> None:
        if self._profile:
            self._profile.end()
        unused = sorted(set(range(len(self._parameters))).difference(self._ready))
        for index in unused:  # this rank takes part with zeros, so that no other waits in vain
            if not self._mean:
                self._before_gradient(index, None)
            self._fill(index)
            self._bucket_of[index].missing -= 1
        self._launch()
        begun = time.perf_counter()
        if self._find_unused:
            self._comm.allreduce(self._used, "max", name="used parameters")
        for bucket in self._buckets:
            assert bucket.work is not None
            bucket.work.wait()
            self._wait_for_streams(bucket)
        self.exposed_seconds += time.perf_counter() - begun
        self.passes += 1
        self._take_in(unused)
        used, self._used = self._used, np.zeros_like(self._used)
        if not self._agreed and (self._profile is None or self._profile.complete):
            self._agree_on_buckets()
        if not self._mean:
            self._remember()
        never = [self._names[index] for index in unused if not used[index]]
        if never and not self._find_unused:
            names = ", ".join(never)
            raise UsageError(
                f"parameters without a gradient on rank {self._comm.rank}: {names}. If the loss "
                "does not depend on them, pass find_unused_parameters=True"
            )

    def _take_in(self, unused: Sequence[int]) -> None:
        """All buckets are reduced: .grad gets what it has not yet."""
        for index in unused:
            parameter = self._parameters[index]
            if self._find_unused and self._used[index]:
                if not self._bucket_of[index].packed:
                    parameter.grad = self._views[index]
                elif parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter)
        for bucket in self._buckets:
            if bucket.packed:
                wire.unpack(bucket.flat, self._places(bucket), self._gradients(bucket))

    def _remember(self) -> None:
        for index, parameter in enumerate(self._parameters):
            inside = parameter.grad is self._views[index] or self._bucket_of[index].packed
            self._reduced[index] = parameter.grad if inside else None

    def _agree_on_buckets(self) -> None:
        """Cuts the buckets anew, in the order in which rank 0 has seen the gradients come."""
        self._agreed = True
        profile, self._profile = self._profile, None
        missing = set(range(len(self._parameters))).difference(self._ready)
        order = np.array([*self._ready, *sorted(missing, reverse=True)], np.int32)
        self._comm.broadcast(order)
        if profile:
            self.bucket_bytes = agree(
                self._comm, self._parameters, order.tolist(), profile, self._wire_dtype
            )
        members = self._plan(order.tolist())
        if members == self._members:
            return
        self._members, old = members, self._views
        self._allocate()
        for parameter, before, view in zip(self._parameters, old, self._views, strict=True):
            if parameter.grad is before:
                parameter.grad = view.copy_(before)

    def _abandon(self) -> None:
        reducing, self._reducing = self._reducing, None
        for bucket in self._buckets[: self._next if reducing else 0]:
            if bucket.work is not None:
                bucket.work.wait()


def _weak(method: Callable[[Any, Any], None], first: Any) -> Callable[[Any], None]:
    """A hook that does not keep the reducer alive: parameters and graphs may outlive it."""
    reference = weakref.WeakMethod(method)

    def hook(argument: Any) -> None:
        alive = reference()
        if alive is not None:
            alive(first, argument)

    return hook


def _remove(handles: Sequence[Any]) -> None:
    for handle in handles:
        handle.remove()
