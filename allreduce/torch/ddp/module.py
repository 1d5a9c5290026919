"""Data-parallel training: every rank has the module, gradients are reduced during backprop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.join import Join, Joinable, JoinHook

from allreduce.communicator.auto_choices import measure_once
from allreduce.errors import UsageError
from allreduce.torch import communicator, gradient_owners
from allreduce.torch.check_agreement import check_agreement
from allreduce.torch.ddp import join, options, wrapped_module
from allreduce.torch.ddp.bucket_size import AUTO, DEFAULT, BucketBytes
from allreduce.torch.ddp.hooks import BucketHook
from allreduce.torch.ddp.options import Options, one_of
from allreduce.torch.ddp.reducer import Reducer
from allreduce.torch.private_names import in_backward_pass, tree_map_only

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["DistributedDataParallel"]


_COUNTED = (
    "exposed_seconds",
    "bytes_reduced",
    "passes",
    "buckets",
    "bucket_bytes",
    "largest_bucket_bytes",
)


class DistributedDataParallel(nn.Module, Joinable):
    """Wraps a module: after `loss.backward()` every `.grad` is reduced over all ranks.

    Gradients live in flat buckets of shared memory, or of the GPU's. A bucket is reduced as soon as
    it is complete, while backprop goes on. `.grad` becomes a view of a bucket, which the next
    backward pass overwrites: copy what you keep, or pass `gradient_as_bucket_view=False`. Buffers,
    batch normalisation statistics among them, stay local, unless `broadcast_buffers` is given.

    With `wire_dtype` float32 gradients travel as bfloat16 or float16, half as many bytes, and
    `.grad` stays a float32 tensor of its own. The mean's division is done in float32, before. Then
    each gradient is rounded once, and each sum of two once more: additions are done in float32 and
    their results rounded at once (docs/design.md, "Canonical order"). With k ranks and u = 2^-8 for
    bfloat16, 2^-11 for float16, an element is off by at most ((1 + u)^k - 1) times the sum of the
    ranks' absolute values, and all ranks get the same bits. float16 overflows above 65504.

    On a GPU all of it is enqueued: at the end of the backward pass the current stream waits for
    what is not reduced yet, and the host goes on.

    A module may change: parameters and layers that are replaced, added or unfrozen are taken in at
    the next forward pass, for which all ranks change alike. New ones become those of rank 0.
    Optimizers keep the parameters that they were made with: make them anew.

    Args:
        module: on the CPU or one GPU, with the same parameters on every rank.
        device_ids: as torch's: None, or the module's GPU, to which inputs are moved.
        output_device: as torch's: None, or the module's GPU.
        process_group: of backend "hier"; None for the default group. Or `device_mesh`, of one
            dimension.
        bucket_bytes: most bytes of a bucket; 0 reduces each gradient by itself. "auto" measures the
            first backward passes, then takes what should end first by the communicator's tuning.
            Or `bucket_cap_mb`, in MiB. 4 MiB where both are None.
        wire_dtype: torch.bfloat16 or torch.float16, in which float32 gradients travel; None: as
            they are. Gradients of other dtypes always travel as they are.
        op: "mean" divides the sum of the gradients by the number of ranks, "sum" does not.
        algo: of the allreduce between nodes, see `Communicator.allreduce`.
        broadcast_parameters: begin with rank 0's parameters and buffers everywhere; or `init_sync`.
        broadcast_buffers: buffers become those of rank 0 before each forward pass, except after
            one in `no_sync()`; or `forward_sync_buffers`. (Default: False; torch's is True.)
        find_unused_parameters: some parameters may have no gradient, on some ranks or on all. Costs
            one small allreduce for each backward pass, on the host, which on a GPU waits for it.
        static_graph: every pass is as the first, which reduces at its end. Parameters may then have
            several gradients in one pass, as under reentrant checkpointing, or none.
        gradient_as_bucket_view: False keeps each `.grad` a tensor of its own, by two copies.
        **unsupported: torch's other arguments raise UsageError, with the reason, unless they are
            off.

    Raises:
        UsageError: an argument cannot work, or another wrapper reduces these gradients already.
            From `backward`: a parameter got no gradient, or two.
        MismatchError: ranks disagree about parameters or arguments.
    """

    _reduces_alone = False  # a measurement's subclass: hooks and buckets on one rank, too
    _ddp_params_and_buffers_to_ignore = gradient_owners.Refusal()

    def __init__(
        self,
        module: nn.Module,
        device_ids: Sequence[int | str | torch.device] | None = None,
        output_device: int | str | torch.device | None = None,
        *,
        process_group: dist.ProcessGroup | None = None,
        device_mesh: DeviceMesh | None = None,
        bucket_bytes: BucketBytes | None = None,
        bucket_cap_mb: float | None = None,
        wire_dtype: torch.dtype | None = None,
        op: str = "mean",
        algo: str = "auto",
        broadcast_parameters: bool | None = None,
        init_sync: bool | None = None,
        broadcast_buffers: bool | None = None,
        forward_sync_buffers: bool | None = None,
        find_unused_parameters: bool = False,
        static_graph: bool = False,
        gradient_as_bucket_view: bool = True,
        **unsupported: Any,
    ) -> None:
        super().__init__()
        Joinable.__init__(self)
        options.refuse_unsupported(unsupported)
        options.check_device_ids(module, device_ids, output_device)
        cap = options.bytes_of(bucket_cap_mb)
        self._options = Options(
            bucket_bytes=one_of(DEFAULT, bucket_bytes=bucket_bytes, bucket_cap_mb=cap),
            wire_dtype=wire_dtype,
            op=op,
            algo=algo,
            find_unused=find_unused_parameters,
            static_graph=static_graph,
            as_views=gradient_as_bucket_view,
            broadcast_parameters=one_of(
                True, broadcast_parameters=broadcast_parameters, init_sync=init_sync
            ),
            sync_buffers=one_of(
                False,
                broadcast_buffers=broadcast_buffers,
                forward_sync_buffers=forward_sync_buffers,
            ),
        )
        mesh = device_mesh.get_group() if device_mesh else None
        self.module = module
        self.process_group = one_of(None, process_group=process_group, device_mesh=mesh)
        self.require_backward_grad_sync = True
        self._moves_inputs = bool(device_ids)
        self._divides_by_all = True  # inside join()
        self._hook: BucketHook | None = None
        self._set_up()
        self._make_reducer()

    def _set_up(self) -> None:
        """What belongs to this process, and is not part of a copy."""
        self._comm = communicator(self.process_group)
        self._reducer: Reducer | None = None
        self._state: wrapped_module.ModuleState | None = None
        self._known: list[Tensor] | None = None  # parameters that are alike on all ranks
        self._buffers_follow = True  # those of rank 0, at the next forward pass

    @property
    def _reduces(self) -> bool:
        return self._comm.world_size > 1 or self._reduces_alone

    @property
    def _goes_by_figures(self) -> bool:
        several = self._comm.layout.ranks_of_schedule > 1  # algorithms to choose from
        return (self._options.algo == "auto" and several) or self._options.bucket_bytes == AUTO

    def _make_reducer(self) -> None:
        """Makes the reducer for the module as it is; every rank calls it at the same time."""
        before, module = self._reducer, self.module
        ignored = set(getattr(module, "_ddp_params_and_buffers_to_ignore", ()))
        kept = set(map(id, before.parameters)) if before else set()  # frozen ones may thaw again
        trained = {
            name: parameter
            for name, parameter in module.named_parameters()
            if name not in ignored and (parameter.requires_grad or id(parameter) in kept)
        }
        names, parameters = [*trained], [*trained.values()]
        wrapped_module.check_parameters(module, trained)
        gradient_owners.claim(self, names, parameters)
        if self._reduces:
            wrapped_module.check_devices(module)
            lines = [str(self._options), *wrapped_module.described(module)]
            check_agreement(self._comm, "DistributedDataParallel", lines)
            self._become_rank_0s(ignored)
            if before is None and self._goes_by_figures:  # now: no choice changes between passes
                measure_once(self._comm)
            self._reducer = Reducer(
                names,
                parameters,
                self._comm,
                self._options,
                before_first_pass=lambda: gradient_owners.check_torch(names, parameters),
            )
            self._reducer.hook = self._hook
            if before:
                self._reducer.follow(before)
        self._state = wrapped_module.ModuleState(module, parameters, ignored)
        self._known = [*module.parameters()]

    def _become_rank_0s(self, ignored: set[str]) -> None:
        """Parameters that are new in the module, and at the begin its buffers."""
        if not self._options.broadcast_parameters:
            return
        tensors: list[tuple[str, Tensor]] = [*self.module.named_parameters()]
        if self._known is None:
            tensors += self.module.named_buffers()
        known = set(map(id, self._known or ()))
        new = [t for name, t in tensors if name not in ignored and id(t) not in known]
        wrapped_module.broadcast(self._comm, new, 0)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the module."""
        gradient_owners.check_around(self.module)
        if self._moves_inputs:
            device = next(self.module.parameters()).device
            args, kwargs = tree_map_only(Tensor, lambda t: t.to(device), (args, kwargs))
        if not self._reduces:
            return self.module(*args, **kwargs)
        ranks = self._meet()
        if not torch.is_grad_enabled():
            return self.module(*args, **kwargs)
        assert self._reducer is not None
        sync = self.require_backward_grad_sync
        self._reducer.prepare(sync, ranks)
        output = self.module(*args, **kwargs)
        self._reducer.mark(output, sync)
        return output

    def _meet(self) -> int:
        """Before a forward pass, what all ranks do together; returns by how many the mean divides.

        The module's changes are taken in, and its buffers become those of rank 0.
        """
        trains = torch.is_grad_enabled() and not in_backward_pass()
        changed = trains and (self._state is None or self._state.changed())
        buffers = self._options.sync_buffers and self._buffers_follow
        root, ranks = 0, self._comm.world_size
        if self._join_config.enable:
            sync = torch.is_grad_enabled() and self.require_backward_grad_sync
            root, ranks = join.announce(self, [changed, buffers, sync])
        if changed:
            self._make_reducer()
        if buffers:
            self._broadcast_buffers(root)
        self._buffers_follow = torch.is_grad_enabled() and self.require_backward_grad_sync
        return ranks

    def _broadcast_buffers(self, root: int) -> None:
        ignored = set(getattr(self.module, "_ddp_params_and_buffers_to_ignore", ()))
        buffers = [b for name, b in self.module.named_buffers() if name not in ignored]
        wrapped_module.broadcast(self._comm, buffers, root)

    def _broadcast_all(self, root: int) -> None:
        wrapped_module.broadcast(self._comm, [*self.module.parameters()], root)
        if self._options.sync_buffers:
            self._broadcast_buffers(root)

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Inside, gradients are added up locally; the first pass outside reduces them all.

        The forward pass decides, wherever its backward pass is run: it must be inside. A backward
        pass through several graphs reduces if one of them was made outside.
        """
        before, self.require_backward_grad_sync = self.require_backward_grad_sync, False
        try:
            yield
        finally:
            self.require_backward_grad_sync = before

    def register_comm_hook(self, state: object, hook: Callable[[Any, Any], Any]) -> None:
        """Calls `hook(state, bucket)` in place of each bucket's allreduce, on every rank.

        bucket has the methods of torch.distributed.GradBucket; its gradients are not divided. The
        hook returns a torch.futures.Future of the reduced buffer. On a single rank it is not
        called. UsageError for a second hook, or with op="sum".
        """
        if not callable(hook):
            raise TypeError(f"hook={hook!r}: must be callable")
        if self._hook:
            raise UsageError("hook: a wrapper has one hook at most; make a new wrapper")
        if self._options.op != "mean":
            raise UsageError('hook: it decides by itself what is summed; leave out op="sum"')
        self._hook = BucketHook(state, hook)
        if self._reducer:
            self._reducer.hook = self._hook

    def join(
        self,
        divide_by_initial_world_size: bool = True,
        enable: bool = True,
        throw_on_early_termination: bool = False,
    ) -> Join:
        """A context in which ranks may have unlike numbers of minibatches, as torch's.

        A rank that has none left takes part with zeros until all have none left; then all become
        what the last of them is. UsageError with op="sum".
        """
        return Join(
            [self],
            enable,
            throw_on_early_termination,
            divide_by_initial_world_size=divide_by_initial_world_size,
        )

    def join_hook(self, **kwargs: Any) -> JoinHook:
        """What this rank does once it has no minibatches left, for torch's `Join`."""
        if self._options.op != "mean":
            raise UsageError('join: is for op="mean"; with "sum" scale the loss by yourself')
        return join.TakesPart(self, **kwargs)

    @property
    def join_device(self) -> torch.device:
        """Where torch's `Join` has its own tensors."""
        return next(self.module.parameters()).device

    @property
    def join_process_group(self) -> Any:
        """The group whose ranks join."""
        return self.process_group or dist.group.WORLD

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or what is saved: the module and the arguments. Its first pass makes the rest."""
        if self.join_process_group is not dist.group.WORLD:
            raise UsageError(
                "process_group: a wrapper can be copied or saved if its group is the default one; "
                "copy or save its .module, and wrap that"
            )
        left_out = ("process_group", "_comm", "_reducer", "_state", "_known")
        return {name: x for name, x in self.__dict__.items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.process_group = None
        self._set_up()
        self._known = [*self.module.parameters()]

    def statistics(self) -> dict[str, Any]:
        """Returns what this rank has counted so far.

        `exposed_seconds`: this process's waiting for reductions after backprop, which on a GPU is
        next to nothing, since the stream waits; `bytes_reduced`: of gradients, as they travel;
        `passes`: backward passes that reduced; `buckets`: how many there are; `bucket_bytes`: of
        the largest that there may be; `largest_bucket_bytes`: of the largest that there is, as it
        travels.
        """
        return self._reducer.statistics() if self._reducer else dict.fromkeys(_COUNTED, 0)
