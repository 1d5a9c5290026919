"""The paper's optimizer: Nesterov SGD in both forms, and its learning rate as pure functions.

The learning-rate functions need no torch; `SGD`, `LARS` and `split_weight_decay` import it when
used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from allreduce.optim.schedules import (
    constant_warmup,
    cosine_decay,
    gradual_warmup,
    linear_scaling,
    sqrt_scaling,
    step_decay,
)

if TYPE_CHECKING:
    from allreduce.optim.lars import LARS as LARS
    from allreduce.optim.sgd import SGD as SGD
    from allreduce.optim.sgd import split_weight_decay as split_weight_decay

__all__ = [
    "LARS",
    "SGD",
    "constant_warmup",
    "cosine_decay",
    "gradual_warmup",
    "linear_scaling",
    "split_weight_decay",
    "sqrt_scaling",
    "step_decay",
]

_NEED_TORCH = {"LARS": "lars", "SGD": "sgd", "split_weight_decay": "sgd"}


def __getattr__(name: str) -> Any:
    if name in _NEED_TORCH:
        return getattr(importlib.import_module(f"allreduce.optim.{_NEED_TORCH[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
