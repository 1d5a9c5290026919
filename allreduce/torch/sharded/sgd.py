"""SGD of which each rank takes a part: reduce-scatter, a step on the own shard, allgather.

The optimizer's state is divided among the ranks as in ZeRO's first stage (Rajbhandari et al. 2020,
section 5.1). What travels is what an allreduce of the gradients takes; in its middle, where each
rank has its part of the sum, the step is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, overload

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT as Params

from allreduce.errors import UsageError
from allreduce.optim import SGD
from allreduce.torch import communicator, gradient_owners
from allreduce.torch.check_agreement import check_agreement, refuse
from allreduce.torch.ddp import buckets
from allreduce.torch.sharded.step_by_collectives import ShardedStep
from allreduce.torch.sharded.step_by_kernel import FusedStep, try_map_peer_memory
from allreduce.torch.streams import DEVICES

if TYPE_CHECKING:
    import torch.distributed as dist

__all__ = ["ShardedSGD"]

_DTYPES = (torch.float32, torch.float64)


class ShardedSGD(SGD):
    """SGD in the reference form, (9), whose momentum is divided among the ranks.

    It takes the place of `DistributedDataParallel` and `SGD` together: the module is not wrapped,
    gradients stay this rank's own until `step()`, which sums them, updates this rank's shard of the
    parameters, and gathers all shards. With `algo="halving_doubling"` sums have the order of
    `allreduce`, and its bits; the step is torch's kernel, which on a CPU may round the last few
    elements of a tensor in another way, and here tensors are cut and joined.

    Parameters and gradients move to flat memory (in shared memory, if on the CPU): `.data` and
    `.grad` become views, which `zero_grad()` fills by zeros whatever its argument says. After
    `step()` gradients are of no use: they hold parts of sums. A parameter without a gradient, on
    some ranks or on all, counts as one whose gradient is zero: unlike with `SGD`, weight decay and
    momentum still move it. On a GPU everything is enqueued, and the host waits for nothing.

    Storage that something puts in a parameter's place (`.data =`, `vector_to_parameters`) is taken
    in by the next step. `step` raises UsageError for a parameter of another dtype or device, or for
    one that its module no longer has (`load_state_dict(assign=True)`): make a new optimizer then.

    Arguments (`lr`, `momentum`, `nesterov`, `weight_decay` may differ between parameter groups, and
    from step to step, alike on all ranks; defaults as `SGD`'s):
        params: parameters or groups, all float32 or all float64, on the CPU or one GPU. At the
            begin they become those of rank 0. None can be added later.
        process_group: of backend "hier"; None for the default group.
        op: "mean" divides the sum of the gradients by the number of ranks, "sum" does not.
        algo: of the reduce-scatter between nodes, see `Communicator.reduce_scatter`.
        fused: True for one kernel instead of reduce-scatter, step and allgather, which takes
            float32 on 2 to 8 GPUs of one node that reach each other's memory; False for the three
            calls; None for the kernel where it can be. `optimizer.fused` says which it is.

    UsageError (a ValueError): an argument cannot work. MismatchError: ranks disagree about
    parameters or arguments; from `step`, about those of the groups. `step` raises what collectives
    raise, too; where it is fused, what became of the step before.
    """

    def __init__(
        self,
        params: Params,
        lr: float,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        *,
        process_group: dist.ProcessGroup | None = None,
        op: str = "mean",
        algo: str = "auto",
        fused: bool | None = None,
    ) -> None:
        self._fixed = False
        super().__init__(params, lr, momentum, nesterov, weight_decay)
        if op not in ("mean", "sum"):
            raise UsageError(f'op={op!r}: must be "mean" or "sum"')
        self._all = [p for group in self.param_groups for p in group["params"]]
        _check_parameters(self._all)
        self._comm = comm = communicator(process_group)
        self._scale = 1.0 / comm.world_size if op == "mean" else 1.0
        self._algo = algo
        lines = [f"{op=} {algo=} {fused=}", *(_described(group) for group in self.param_groups)]
        check_agreement(comm, "ShardedSGD", [*lines, *map(_shape, self._all)])
        names = [f"parameter {index}" for index in range(len(self._all))]
        gradient_owners.claim(self, names, self._all, replaces=(ShardedSGD,))
        self._fixed = True
        self._move(fused)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Raises UsageError once the optimizer is made: the shards are cut."""
        if self._fixed:
            raise UsageError("param_group: give ShardedSGD all its groups when it is made")
        super().add_param_group(param_group)

    @torch.no_grad()
    def _move(self, fused: bool | None) -> None:
        """Moves parameters and gradients to flat memory, the groups one after the other."""
        comm, like = self._comm, self._all[0]
        ends, self._begins, end = [], [], 0
        for group in self.param_groups:
            for parameter in group["params"]:
                self._begins.append(end)
                end = buckets.aligned(end + parameter.numel(), like.dtype)
            ends.append(end)
        memory, self.why_not_fused = try_map_peer_memory(comm, like, end, wanted=fused is not False)
        if fused and memory is None:
            raise UsageError(f"fused=True: {self.why_not_fused}; leave it out, or give False")
        self._steps: ShardedStep | FusedStep
        if memory:
            self._steps = FusedStep(comm, memory, ends)
        else:
            self._steps = ShardedStep(comm, like, ends, self._algo)
        self._flat, self._gradients = self._steps.flat, self._steps.gradients
        self._homes = self._all  # where parameters belong, with their strides
        self._views = self._places(self._gradients)
        self._homes = self._places(self._flat)
        for parameter, home in zip(self._all, self._homes, strict=True):
            parameter.data = home.copy_(parameter)
        self._addresses = [parameter.data_ptr() for parameter in self._all]
        self._holders = gradient_owners.holders(self._all)
        comm.broadcast(self._flat)
        self._take_in_gradients()

    @property
    def fused(self) -> bool:
        """Whether a step is one kernel; else `why_not_fused` says why it is not."""
        return isinstance(self._steps, FusedStep)

    def _places(self, flat: Tensor) -> list[Tensor]:
        pairs = zip(self._homes, self._begins, strict=True)
        return [buckets.view_like(home, flat, begin) for home, begin in pairs]

    @torch.no_grad()
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Fills all gradients by zeros, in one go; they stay views, so `set_to_none` is ignored."""
        self._gradients.zero_()
        for parameter, view in zip(self._all, self._views, strict=True):
            if not buckets.lies_in(parameter.grad, view):
                parameter.grad = view.detach()

    def _take_in_parameters(self) -> None:
        """Brings those back to flat memory whose storage was replaced."""
        for module, name, parameter in self._holders:
            now = getattr(module(), "_parameters", {}).get(name)
            if now is not parameter and isinstance(now, nn.Parameter):
                self._refuse(parameter, f"was replaced in its module, as {name!r}")
        if [parameter.data_ptr() for parameter in self._all] == self._addresses:
            return
        for parameter, home in zip(self._all, self._homes, strict=True):
            if parameter.data_ptr() == home.data_ptr():
                continue
            if gradient_owners.owner_of(parameter) is not self:
                self._refuse(parameter, "is another optimizer's now")
            if (_shape(parameter), parameter.device) != (_shape(home), home.device):
                self._refuse(parameter, f"is {_shape(parameter)} on {parameter.device} now")
            parameter.data = home.copy_(parameter)

    def _refuse(self, parameter: Tensor, what: str) -> NoReturn:
        index = next(i for i, one in enumerate(self._all) if one is parameter)
        refuse(self._comm, f"parameter {index} {what}: make a new ShardedSGD for what is there now")

    def _take_in_gradients(self) -> None:
        """Brings those to flat memory that came from elsewhere."""
        for index, (parameter, view) in enumerate(zip(self._all, self._views, strict=True)):
            grad = parameter.grad
            if buckets.lies_in(grad, view):
                continue
            if grad is None:
                view.zero_()
            elif grad.layout != torch.strided:
                raise UsageError(
                    f"parameter {index}, of shape {list(parameter.shape)}, has a sparse gradient; "
                    "use a dense one (sparse=False in nn.Embedding)"
                )
            else:
                view.copy_(grad)
            parameter.grad = view.detach()

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter, by the gradients of all ranks; every rank calls it.

        `closure`, if given, recomputes the loss first, and its value is returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._take_in_parameters()
        self._take_in_gradients()
        groups = "; ".join(_described(group) for group in self.param_groups)
        self._steps.step(self.param_groups, self._scale, f"ShardedSGD: {groups}")
        return loss

    @torch.no_grad()
    def state_dict(self) -> dict[str, Any]:
        """What `SGD.state_dict` gives, with the momentum of the whole model: every rank calls it.

        It fits `SGD`, and a ShardedSGD of any number of ranks.
        """
        whole = torch.zeros_like(self._flat)
        for begin, momentum in self._steps.momenta():
            whole[begin : begin + momentum.numel()] = momentum
        self._comm.allreduce(whole)  # each place is another rank's, or none's
        for parameter, place in zip(self._all, self._places(whole), strict=True):
            self.state[parameter]["momentum"] = place.clone()
        try:
            return super().state_dict()
        finally:
            self.state.clear()

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes what `state_dict` gave, or `SGD`'s in the reference form; each rank its own part.

        UsageError for another form.
        """
        if any(group.get("form") != "reference" for group in state_dict["param_groups"]):
            raise UsageError('state_dict: is of another form of SGD than "reference"')
        super().load_state_dict(dict(state_dict))
        whole = torch.zeros_like(self._flat)
        for parameter, place in zip(self._all, self._places(whole), strict=True):
            if "momentum" in self.state[parameter]:
                place.copy_(self.state[parameter]["momentum"])
        self.state.clear()
        self._steps.load(whole)


def _check_parameters(parameters: list[Tensor]) -> None:
    first = parameters[0]
    if first.device.type != "cpu" and first.device.type not in DEVICES:
        raise UsageError(f"params: are on {first.device}; move the module to the CPU or a GPU")
    for index, parameter in enumerate(parameters):
        if parameter.dtype not in _DTYPES or parameter.dtype != first.dtype:
            raise UsageError(
                f"params: number {index} has dtype {parameter.dtype}, the first {first.dtype}; all "
                "must be float32, or all float64"
            )
        if parameter.device != first.device:
            raise UsageError(
                f"params: number {index} is on {parameter.device}, the first on {first.device}; "
                "all must be on one device"
            )


def _described(group: Mapping[str, Any]) -> str:
    """What must be the same on all ranks at each step."""
    names = ("lr", "momentum", "nesterov", "weight_decay", "gradient_scale")
    return " ".join(f"{name}={group[name]!r}" for name in names)


def _shape(parameter: Tensor) -> str:
    return f"{str(parameter.dtype).removeprefix('torch.')}{list(parameter.shape)}"
