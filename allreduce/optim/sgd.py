"""Nesterov SGD as the paper writes it: equation (9), and equation (10) with its correction."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer
from torch.optim.optimizer import ParamsT as Params
from torch.optim.sgd import sgd as _torch_sgd

from allreduce.optim import _kernels

__all__ = ["SGD", "split_weight_decay"]

_FORMS = ("reference", "absorbed")


class SGD(Optimizer):
    """SGD with momentum, in one of two forms that agree while the learning rate stands still.

    With g the gradient (weight decay included), m the momentum and eta the learning rate:

        reference, (9):   u <- m u + g                          w <- w - eta u
        absorbed, (10):   v <- m (eta / eta_before) v + eta g   w <- w - v

    Nesterov's update is taken at the point ahead: w <- w - eta (g + m u), which in the absorbed
    form is w <- w - (eta g + m v). The factor eta / eta_before is the momentum correction of
    Remark 2. With it both forms are the same algorithm under any schedule; without it
    (`momentum_correction=False`) the absorbed form is a different one, which the paper warns of.
    eta_before is kept per parameter, so a parameter that gets no gradient for a while is
    corrected over the whole gap.

    On CUDA tensors a step is one pass of our own kernel over all tensors of a group, on the current
    stream, where allreduce was built with CUDA: for f32 parameters and gradients of f32, bf16 or
    f16 that are dense and have the same strides. Elsewhere it is torch's: the reference form its
    fused kernel, the absorbed form its foreach functions.

    Arguments (all but `params` may differ between parameter groups, and `lr` from step to step):
        params: parameters or groups, as for any torch optimizer; floating point, dense gradients.
        lr: eta, at least 0; above 0 in the absorbed form with correction, which divides by it.
        momentum: m, in [0, 1). nesterov: False gives plain momentum. Their defaults are the
            paper's, 0.9 with Nesterov's update; torch's SGD has neither unless it is asked.
        weight_decay: lambda, added to g as lambda w; at least 0. Default: 0, as torch's. The paper
            has 0.0001, not for normalisation: see `split_weight_decay`.
        gradient_scale: multiplies gradients before all else, 1 / kn for summed losses, say.

    ValueError for a value outside these, RuntimeError for a sparse gradient.
    """

    def __init__(
        self,
        params: Params,
        lr: float,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        form: Literal["reference", "absorbed"] = "reference",
        momentum_correction: bool = True,
        gradient_scale: float = 1.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "form": form,
            "momentum_correction": momentum_correction,
            "gradient_scale": gradient_scale,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group; what it leaves out comes from the optimizer's arguments."""
        _check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient; the gradients are left as they are.

        `closure`, if given, recomputes the loss first, and its value is returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            _check_group(group)  # schedules write into groups
            params, gradients = _with_gradients(group["params"])
            if params:
                self._step(group, params, gradients)
        return loss

    def _step(self, group: dict[str, Any], params: list[Tensor], gradients: list[Tensor]) -> None:
        momenta = self._momenta(params) if group["momentum"] else []
        batches, others = _kernels.split(params, gradients, momenta)
        others, rest = _with_gradients(others)
        if any(g.is_sparse for g in rest):
            raise RuntimeError("allreduce.optim.SGD takes dense gradients, not sparse ones")
        for batch in batches:
            self._step_batch(group, batch)
        if others:
            self._step_group(group, others, _scaled(rest, group))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave, also before there was a gradient_scale."""
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("gradient_scale", 1.0)

    def _step_batch(self, group: dict[str, Any], batch: _kernels.Batch) -> None:
        # By our kernels; _step_group does the same by torch.
        corrections = [1.0] * len(batch.params)
        if group["form"] == "absorbed" and group["momentum"] > 0:
            corrections = self._corrections(group, batch.params)
        batch.sgd(group["weight_decay"], corrections, form=group["form"], **_numbers(group))

    def _step_group(
        self, group: dict[str, Any], params: list[Tensor], gradients: list[Tensor]
    ) -> None:
        if group["form"] == "reference":
            self._reference_step(group, params, gradients, group["weight_decay"])
        else:
            self._absorbed_step(group, params, gradients)

    def _momenta(self, params: list[Tensor]) -> list[Tensor]:
        try:
            return [self.state[param]["momentum"] for param in params]
        except KeyError:  # a parameter's first step
            for param in params:
                if "momentum" not in self.state[param]:
                    self.state[param]["momentum"] = torch.zeros_like(param)
            return [self.state[param]["momentum"] for param in params]

    def _reference_step(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        gradients: list[Tensor],
        weight_decay: float,
    ) -> None:
        # torch's own SGD is form (9); its fused kernel reads and writes each value once, in the
        # order of memory, whatever the strides say.
        momentum = group["momentum"]
        momenta = self._momenta(params) if momentum else []
        arrays = zip(params, gradients, *[momenta] * bool(momenta), strict=True)
        fused = all(p.device.type in ("cpu", "cuda") for p in params)
        _torch_sgd(
            params,
            gradients,
            [*momenta] or [None] * len(params),
            fused=fused and all(map(_kernels.in_one_order, arrays)),
            weight_decay=weight_decay,
            momentum=momentum,
            lr=group["lr"],
            dampening=0.0,
            nesterov=group["nesterov"] and momentum > 0,
            maximize=False,
        )

    def _absorbed_step(
        self, group: dict[str, Any], params: list[Tensor], gradients: list[Tensor]
    ) -> None:
        lr, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
        steps: list[Tensor] = list(torch._foreach_mul(gradients, lr))
        if decay:
            torch._foreach_add_(steps, params, alpha=lr * decay)
        if momentum:
            velocities = self._momenta(params)
            corrections = self._corrections(group, params)
            torch._foreach_mul_(velocities, [momentum * c for c in corrections])
            torch._foreach_add_(velocities, steps)
            if group["nesterov"]:
                torch._foreach_add_(steps, velocities, alpha=momentum)
            else:
                steps = velocities
        torch._foreach_sub_(params, steps)

    def _corrections(self, group: dict[str, Any], params: list[Tensor]) -> list[float]:
        # Notes the rate of this step, and gives eta / eta_before (1 at a parameter's first step).
        lr, states = group["lr"], [self.state[param] for param in params]
        before = [state.get("lr", lr) for state in states]
        for state in states:
            state["lr"] = lr
        return [lr / b if group["momentum_correction"] else 1.0 for b in before]


def _with_gradients(params: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    # Each gradient is asked for once: torch makes a new object of it, if none is alive.
    gradients = [param.grad for param in params]
    found = [gradient for gradient in gradients if gradient is not None]
    if len(found) < len(params):
        params = [p for p, g in zip(params, gradients, strict=True) if g is not None]
    return params, found


def _scaled(gradients: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
    scale = group["gradient_scale"]
    return gradients if scale == 1 else list(torch._foreach_mul(gradients, scale))


def _numbers(group: dict[str, Any]) -> dict[str, Any]:
    """A group's numbers as the kernels name them."""
    names = {"lr": "lr", "momentum": "momentum", "nesterov": "nesterov", "scale": "gradient_scale"}
    return {ours: group[name] for ours, name in names.items()}


def _check_group(group: dict[str, Any]) -> None:
    lr, momentum, decay, form = (group[k] for k in ("lr", "momentum", "weight_decay", "form"))
    if form not in _FORMS:
        raise ValueError(f"form must be one of {', '.join(_FORMS)}, not {form!r}")
    if not lr >= 0:
        raise ValueError(f"lr must be at least 0, not {lr}")
    if lr == 0 and form == "absorbed" and group["momentum_correction"]:
        raise ValueError(
            "lr must be above 0 in the absorbed form with momentum correction, which divides by "
            'it; use form="reference" for a rate of 0'
        )
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must lie in [0, 1), not {momentum}")
    if not decay >= 0:
        raise ValueError(f"weight_decay must be at least 0, not {decay}")


def split_weight_decay(
    module: nn.Module, weight_decay: float = 1e-4, *, exclude: Iterable[type[nn.Module]] = ()
) -> list[dict[str, Any]]:
    """Two parameter groups: everything with `weight_decay`, normalisation parameters with 0.

    The gamma and beta of batch, layer, group and instance normalisation are not decayed (section
    5.1), nor are parameters held directly by a module of a type in `exclude`. Parameters appear
    in the order of `module.parameters()`, each once; groups that would be empty are left out.
    """
    norms = (
        nn.modules.batchnorm._NormBase,  # every BatchNorm and InstanceNorm
        nn.LayerNorm,
        nn.GroupNorm,
        nn.RMSNorm,
        *exclude,
    )
    free = {
        id(param)
        for owner in module.modules()
        if isinstance(owner, norms)
        for param in owner.parameters(recurse=False)
    }
    params = list(module.parameters())
    groups = [
        {"params": [p for p in params if id(p) not in free], "weight_decay": weight_decay},
        {"params": [p for p in params if id(p) in free], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
