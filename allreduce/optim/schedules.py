"""Learning rates as pure functions of the iteration: nothing to save, nothing to resume wrongly."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = [
    "constant_warmup",
    "cosine_decay",
    "gradual_warmup",
    "linear_scaling",
    "sqrt_scaling",
    "step_decay",
]


def linear_scaling(kn: int, reference: float = 0.1, base: int = 256) -> float:
    """Learning rate for a total minibatch of `kn` images, `reference` being right for `base`.

    The paper's linear scaling rule (section 2.1). ValueError unless kn and base are positive.
    """
    _check_images(kn, base)
    return reference * kn / base


def sqrt_scaling(kn: int, reference: float = 0.1, base: int = 256) -> float:
    """As `linear_scaling`, but by the square root of kn / base, which the paper finds worse.

    (Table 2a; Krizhevsky 2014.) ValueError unless kn and base are positive.
    """
    _check_images(kn, base)
    return reference * math.sqrt(kn / base)


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


def cosine_decay(iteration: int, *, begin: int, end: int) -> float:
    """Multiplier that falls from 1 at iteration `begin` to 0 at `end`, as half a cosine wave.

    It is 1 before `begin`. (Loshchilov and Hutter 2017, without restarts.) ValueError unless
    0 <= begin < end.
    """
    _check_counts(iteration, begin)
    if end <= begin:
        raise ValueError(f"a decay ends after it begins, not at {end} with a begin at {begin}")
    share = min(max(iteration - begin, 0) / (end - begin), 1.0)
    return 0.5 * (1.0 + math.cos(math.pi * share))


def _check_images(kn: int, base: int) -> None:
    if kn <= 0 or base <= 0:
        raise ValueError(f"kn and base count images and must be positive, not {kn} and {base}")


def _check_counts(iteration: int, iterations: int) -> None:
    if iteration < 0 or iterations < 0:
        raise ValueError(f"iterations are counted from 0, not {min(iteration, iterations)}")
