"""Reduces gradients while backprop goes on.

A parameter's hook moves its gradient into a bucket; complete buckets are reduced in the background,
strictly in the order of their index, which is the same on all ranks; a callback at the end of the
backward pass waits for all of them. (Goyal et al. 2017, section 4.2)

Gradients that travel in another dtype stay outside of their bucket: the complete bucket is packed,
and unpacked once it is reduced.

A gradient may come several times in one pass (reentrant checkpointing of tied weights) where the
graph is static: the first pass counts, and reduces at its end.

On a GPU nothing waits but streams: a reduction comes after what has filled its bucket, and what the
stream of the backward pass's caller does next comes after all reductions.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from allreduce.errors import UsageError
from allreduce.torch import streams
from allreduce.torch.check_agreement import refuse
from allreduce.torch.ddp import buckets, cast_buckets
from allreduce.torch.ddp.bucket_size import AUTO, DEFAULT, Profile, agree
from allreduce.torch.ddp.hooks import BucketHook, remove, weak_hook
from allreduce.torch.ddp.options import Options
from allreduce.torch.ddp.outputs import tensors_in
from allreduce.torch.private_names import after_backward, in_backward_pass

if TYPE_CHECKING:
    from allreduce.communicator.communicator import Communicator

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
        options: Options,
        before_first_pass: Callable[[], None] = lambda: None,
    ) -> None:
        self._names, self.parameters = tuple(names), tuple(parameters)
        self._comm, self._options = comm, options
        self._before_first_pass = before_first_pass
        count = len(self.parameters)
        size = options.bucket_bytes
        self._profile = Profile(count) if size == AUTO else None
        self.bucket_bytes = DEFAULT if size == AUTO else size
        self._mean = options.op == "mean"
        self._share = 1.0 / comm.world_size
        self._find_unused = options.find_unused or options.static_graph
        self.hook: BucketHook | None = None
        self._members = self._plan(range(count)[::-1])
        self._allocate()
        self._sync = True  # whether a graph reduces that no output has marked
        self._reducing: bool | None = None  # whether this backward pass does; None: in none
        self._agreed = False  # the order of the buckets is that of a backward pass of rank 0's
        self._next = 0  # the first bucket that is not being reduced yet
        self._ready: list[int] = []  # parameters whose gradients are complete, in this pass
        # How often a gradient comes in one pass: so far, and in all (None: not counted yet).
        self._come = np.zeros(count, np.int32)
        self._whole = None if options.static_graph else np.ones(count, np.int32)
        self._used = np.zeros(count, np.int32)  # had a gradient since the last reduction
        # With "sum": the .grad that holds a reduced value.
        self._reduced: list[Tensor | None] = [None] * count
        self.exposed_seconds, self.bytes_reduced, self.passes = 0.0, 0, 0
        # What adds to .grad; torch keeps these no longer than a graph. torch.autograd.grad does
        # not run them, so that their hooks do not see it, as those of a tensor do.
        self._accumulators = [get_gradient_edge(p).node for p in self.parameters]
        handles = []
        for index, node in enumerate(self._accumulators):
            parameter: Any = self.parameters[index]  # torch gives the next method no types
            hook = weak_hook(self._on_gradient, index)
            handles.append(parameter.register_post_accumulate_grad_hook(hook))
            if not self._mean:
                handles.append(node.register_prehook(weak_hook(self._before_gradient, index)))
        self._remove_hooks = weakref.finalize(self, remove, handles)

    def statistics(self) -> dict[str, float]:
        """See `DistributedDataParallel.statistics`."""
        return {
            "exposed_seconds": self.exposed_seconds,
            "bytes_reduced": self.bytes_reduced,
            "passes": self.passes,
            "buckets": len(self._buckets),
            "bucket_bytes": self.bucket_bytes,
            "largest_bucket_bytes": max(bucket.flat.nbytes for bucket in self._buckets),
        }

    def follow(self, before: Reducer) -> None:
        """Takes the place of another one of the same module, which does nothing from now on."""
        before._remove_hooks()
        if before._reducing is not None:
            before._abandon()
        held = {id(p): g for p, g in zip(before.parameters, before._reduced, strict=True)}
        self._reduced = [held.get(id(parameter)) for parameter in self.parameters]
        self.exposed_seconds = before.exposed_seconds
        self.bytes_reduced = before.bytes_reduced
        self.passes = before.passes

    def prepare(self, sync: bool, ranks: int) -> None:
        """Before a forward pass. sync: whether the backward pass of its graph reduces.

        ranks: by how many the mean divides.
        """
        if self._reducing is not None and not in_backward_pass():
            self._abandon()  # the last backward pass ended by an exception
        self._sync = sync
        self._share = 1.0 / ranks
        for index, grad in enumerate(self._reduced):  # keep no memory that .grad has given up
            if self.parameters[index].grad is not grad:
                self._reduced[index] = None

    def mark(self, output: Any, sync: bool) -> None:
        """After a forward pass: its graph says by itself whether its backward pass reduces.

        Hooks of the outputs say so, before any gradient of a parameter comes. They see the
        outermost pass, even where checkpointing runs others inside.
        """
        hook = weak_hook(self._begin, sync)
        for tensor in tensors_in(output):
            if tensor.grad_fn is not None:
                tensor.register_hook(hook)  # type: ignore[no-untyped-call]

    def take_part(self) -> None:
        """Reduces zeros, in place of a backward pass that only other ranks run."""
        if self._profile:
            self._profile.begin()
            self._profile.end()
        self._start()
        for bucket in self._buckets:
            bucket.flat.zero_()
            bucket.missing = 0
        self._launch(pack=False)
        self._wait()
        self._used[:] = 0
        self._agree_on_buckets()

    @torch.no_grad()
    def _begin(self, sync: bool, _: Any = None) -> None:
        """In a backward pass: through a graph that reduces, or not. If any does, the pass does."""
        if self._reducing is None:
            self._reducing = False
            after_backward(self._finish)
        if not sync or self._reducing:
            return
        if self.passes == 0:
            self._before_first_pass()
        self._reducing = True
        if self._profile:
            self._profile.begin()
        self._start()

    def _start(self) -> None:
        self._next = 0
        self._ready.clear()
        self._come[:] = 0
        for bucket in self._buckets:
            bucket.missing, bucket.work = len(bucket.members), None
            bucket.streams.clear()

    def _plan(self, order: Sequence[int]) -> list[tuple[int, ...]]:
        return buckets.plan(self.parameters, order, self.bucket_bytes, self._options.wire_dtype)

    def _allocate(self) -> None:
        options = self._options
        self._buckets, self._views = buckets.allocate(
            self._comm, self.parameters, self._members, options.wire_dtype, options.as_views
        )
        self._bucket_of = {i: bucket for bucket in self._buckets for i in bucket.members}

    def _before_gradient(self, index: int, _: Any) -> None:
        # A reduced sum that stays in .grad would be summed once more, by every rank: each gives its
        # share of it. (With mean the division by world_size does the same.)
        grad, self._reduced[index] = self._reduced[index], None
        if grad is not None and self.parameters[index].grad is grad:
            with torch.no_grad():
                grad.mul_(self._share)

    @torch.no_grad()
    def _on_gradient(self, index: int, _: Any) -> None:
        self._used[index] = 1
        if self._reducing is None:
            self._begin(self._sync)
        if not self._reducing:
            return
        if why := buckets.why_not_reduced(self.parameters[index].grad):
            self._refuse(index, why)
        self._come[index] += 1
        if self._whole is None:
            return
        if self._come[index] == self._whole[index]:
            self._complete(index)
        elif self._come[index] > self._whole[index]:
            often, remedy = "twice in one", "pass static_graph=True"
            if self._options.static_graph:
                often, remedy = "more often than in the first", "leave out static_graph"
            self._refuse(
                index,
                f"got a gradient {often} backward pass; with torch.utils.checkpoint pass "
                f"use_reentrant=False, or {remedy}",
            )

    def _refuse(self, index: int, why: str) -> NoReturn:
        refuse(self._comm, f"parameter {self._names[index]} {why}")

    def _complete(self, index: int) -> None:
        """The gradient of this pass is whole."""
        bucket = self._bucket_of[index]
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
        parameter, view = self.parameters[index], self._views[index]
        bucket = self._bucket_of[index]
        if (stream := streams.current(view.device)) is not None:
            bucket.streams.add(stream)
        if bucket.packed:
            return
        grad = parameter.grad
        if grad is None:
            view.zero_()
            return
        inside = buckets.lies_in(grad, view)
        if self._scale != 1.0:
            torch.mul(grad, self._scale, out=view)
        elif not inside:
            view.copy_(grad)
        if not inside:
            parameter.grad = view.detach()

    @property
    def _scale(self) -> float:
        """Of gradients before they are added up; a hook does it by itself."""
        return self._share if self._mean and self.hook is None else 1.0

    def _launch(self, *, pack: bool = True) -> None:
        while self._next < len(self._buckets) and self._buckets[self._next].missing == 0:
            bucket = self._buckets[self._next]
            self._next += 1
            self._wait_for_streams(bucket)
            if bucket.packed and pack:
                places, gradients = self._places(bucket), self._gradients(bucket)
                cast_buckets.pack(bucket.flat, places, gradients, self._scale)
            if self.hook:
                bucket.work = self.hook.run(
                    bucket,
                    self._next - 1,
                    places=self._places(bucket),
                    parameters=[self.parameters[index] for index in bucket.members],
                    is_last=self._next == len(self._buckets),
                )
            else:
                bucket.work = self._comm.allreduce(
                    bucket.flat, "sum", self._options.algo, async_op=True, name=bucket.name
                )
            self.bytes_reduced += bucket.flat.nbytes

    def _places(self, bucket: buckets.Bucket) -> list[Tensor]:
        return [self._views[index] for index in bucket.members]

    def _gradients(self, bucket: buckets.Bucket) -> list[Tensor | None]:
        return [self.parameters[index].grad for index in bucket.members]

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
            if self._reducing and (self._come.any() or self._find_unused):
                self._reduce_rest()
        finally:
            self._reducing = None

    def _reduce_rest(self) -> None:
        if self._whole is None:
            for index in np.flatnonzero(self._come)[::-1]:
                self._complete(int(index))
            self._whole = self._come.copy()
        if self._profile:
            self._profile.end()
        unused = sorted(set(range(len(self.parameters))).difference(self._ready))
        for index in unused:  # this rank takes part with zeros, so that no other waits in vain
            if not self._mean:
                self._before_gradient(index, None)
            self._fill(index)
            self._bucket_of[index].missing -= 1
        self._launch()
        self._wait()
        self._take_in(unused)
        used, self._used = self._used, np.zeros_like(self._used)
        self._agree_on_buckets()
        if not self._mean:
            self._remember()
        if not self._find_unused:
            self._check_used([index for index in unused if not used[index]])

    def _wait(self) -> None:
        begun = time.perf_counter()
        if self._find_unused:
            self._comm.allreduce(self._used, "max", name="used parameters")
        for bucket in self._buckets:
            assert bucket.work is not None
            bucket.work.wait()
            self._wait_for_streams(bucket)
        self.exposed_seconds += time.perf_counter() - begun
        self.passes += 1

    def _check_used(self, never: Sequence[int]) -> None:
        names = [self._names[i] for i in never if self.parameters[i].requires_grad]
        if names:
            raise UsageError(
                f"parameters without a gradient on rank {self._comm.rank}: {', '.join(names)}. If "
                "the loss does not depend on them, pass find_unused_parameters=True"
            )

    def _take_in(self, unused: Sequence[int]) -> None:
        """All buckets are reduced: .grad gets what it has not yet."""
        for index in unused:
            parameter = self.parameters[index]
            if self._find_unused and self._used[index]:
                if not self._bucket_of[index].packed:
                    parameter.grad = self._views[index].detach()
                elif parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter)
        for bucket in self._buckets:
            if bucket.packed:
                cast_buckets.unpack(bucket.flat, self._places(bucket), self._gradients(bucket))

    def _remember(self) -> None:
        for index, parameter in enumerate(self.parameters):
            packed = self._bucket_of[index].packed
            inside = packed or buckets.lies_in(parameter.grad, self._views[index])
            self._reduced[index] = parameter.grad if inside else None

    def _agree_on_buckets(self) -> None:
        """Cuts the buckets anew, in the order in which rank 0 has seen the gradients come."""
        if self._agreed or (self._profile is not None and not self._profile.complete):
            return
        self._agreed = True
        profile, self._profile = self._profile, None
        missing = set(range(len(self.parameters))).difference(self._ready)
        order = np.array([*self._ready, *sorted(missing, reverse=True)], np.int32)
        self._comm.broadcast(order)
        if profile:
            self.bucket_bytes = agree(
                self._comm, self.parameters, order.tolist(), profile, self._options.wire_dtype
            )
        members = self._plan(order.tolist())
        if members == self._members:
            return
        self._members, old = members, self._views
        self._allocate()
        for parameter, before, view in zip(self.parameters, old, self._views, strict=True):
            if buckets.lies_in(parameter.grad, before):
                parameter.grad = view.copy_(before).detach()

    def _abandon(self) -> None:
        reducing, self._reducing = self._reducing, None
        for bucket in self._buckets[: self._next if reducing else 0]:
            if bucket.work is not None:
                bucket.work.wait()
