"""LARS: SGD whose steps are in proportion to the weights they change, tensor by tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT as Params

from allreduce.optim import _kernels
from allreduce.optim.sgd import SGD, _numbers

__all__ = ["LARS"]


class LARS(SGD):
    """Nesterov SGD with layer-wise adaptive rates (You, Gitman and Ginsburg 2017).

    With g the gradient, w the weights of one tensor and lambda the weight decay, `SGD` in the
    reference form is given

        trust |w| / (|g| + lambda |w|) (g + lambda w)

    instead of g + lambda w. Tensors of fewer than two dimensions (biases, gamma and beta), and
    those whose norm or gradient's norm is 0, take plain steps. The learning rate stands outside of
    the momentum, so it may change without a correction (Remark 2 of Goyal et al.).

    What runs as `SGD` on our own CUDA kernels does so here: a pass for the norms, a pass for the
    step. The sums have one order, so the same step again gives the same bits. Elsewhere it is
    torch's foreach functions.

    Args:
        trust: the trust coefficient, above 0; may differ between parameter groups.

    The other arguments are those of `SGD`. By default momentum is 0.9, Nesterov, without weight
    decay.

    ValueError for a value outside these, RuntimeError for a sparse gradient.
    """

    def __init__(
        self,
        params: Params,
        lr: float,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        trust: float = 0.001,
        gradient_scale: float = 1.0,
    ) -> None:
        if not trust > 0:
            raise ValueError(f"trust must be above 0, not {trust}")
        self._trust = trust
        super().__init__(
            params, lr, momentum, nesterov, weight_decay, gradient_scale=gradient_scale
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group; what it leaves out comes from the optimizer's arguments."""
        param_group.setdefault("trust", self._trust)
        super().add_param_group(param_group)

    def _step_batch(self, group: dict[str, Any], batch: _kernels.Batch) -> None:
        trusts = [group["trust"] if param.ndim > 1 else 0.0 for param in batch.params]
        batch.lars(group["weight_decay"], trusts, **_numbers(group))

    def _step_group(
        self, group: dict[str, Any], params: list[Tensor], gradients: list[Tensor]
    ) -> None:
        decay = group["weight_decay"]
        if decay:
            steps = list(torch._foreach_add(gradients, params, alpha=decay))
        else:
            steps = list(torch._foreach_mul(gradients, 1.0))
        layers = [i for i, param in enumerate(params) if param.ndim > 1]
        if layers:
            weights = torch.stack(torch._foreach_norm([params[i] for i in layers]))
            slopes = torch.stack(torch._foreach_norm([gradients[i] for i in layers]))
            ratios = group["trust"] * weights / (slopes + decay * weights)
            ratios = torch.where((weights > 0) & (slopes > 0), ratios, torch.ones_like(ratios))
            torch._foreach_mul_([steps[i] for i in layers], list(ratios.unbind()))
        self._reference_step(group, params, steps, weight_decay=0.0)
