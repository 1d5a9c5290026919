"""The paper's optimizer: Nesterov SGD in both forms, and its learning rate as pure functions.

The learning-rate functions need no torch; `SGD` and `split_weight_decay` import it when used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from allreduce.optim.schedules import (
    constant_warmup,
    gradual_warmup,
    linear_scaling,
    step_decay,
)

if TYPE_CHECKING:
    from allreduce.optim.sgd import SGD as SGD
    from allreduce.optim.sgd import split_weight_decay as split_weight_decay

__all__ = [
    "SGD",
    "constant_warmup",
    "gradual_warmup",
    "linear_scaling",
    "split_weight_decay",
    "step_decay",
]


def __getattr__(name: str) -> Any:
    if name in ("SGD", "split_weight_decay"):
        from allreduce.optim import sgd

        return getattr(sgd, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
