"""Learning rates as pure functions of the iteration: nothing to save, nothing to resume wrongly."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["constant_warmup", "gradual_warmup", "linear_scaling", "step_decay"]


def linear_scaling(kn: int, reference: float = 0.1, base: int = 256) -> float:
    """Learning rate for a total minibatch of `kn` images, `reference` being right for `base`.

    The paper's linear scaling rule (section 2.1). ValueError unless kn and base are positive.
    """
    if kn <= 0 or base <= 0:
        raise ValueError(f"kn and base count images and must be positive, not {kn} and {base}")
    return reference * kn / base


def gradual_warmup(iteration: int, *, start: float, target: float, iterations: int) -> float:
    """Rate that grows by a constant amount each iteration, from `start` at iteration 0.

    It is `target` from iteration `iterations` on; `iterations` = 0 means no warmup. This is the
    paper's gradual warmup (section 2.2). ValueError if a count is negative.
    """
    _check_counts(iteration, iterations)
    if iteration >= iterations:
        return target
    return start + (target - start) * (iteration / iterations)


def constant_warmup(iteration: int, *, start: float, target: float, iterations: int) -> float:
    """Rate that is `start` for `iterations` iterations, then `target` (section 2.2)."""
    _check_counts(iteration, iterations)
    return target if iteration >= iterations else start


def step_decay(iteration: int, milestones: Sequence[int], factor: float = 0.1) -> float:
    """Multiplier `factor` to the power of the milestones that `iteration` has reached."""
    _check_counts(iteration, 0)
    return factor ** sum(iteration >= milestone for milestone in milestones)


def _check_counts(iteration: int, iterations: int) -> None:
    if iteration < 0 or iterations < 0:
        raise ValueError(f"iterations are counted from 0, not {min(iteration, iterations)}")
