"""The learning rate of a run: scaling by kn, warmup per iteration, steps of 1/10 or a cosine."""

from __future__ import annotations

from dataclasses import dataclass

from allreduce.optim.schedules import (
    constant_warmup,
    cosine_decay,
    gradual_warmup,
    linear_scaling,
    sqrt_scaling,
    step_decay,
)
from trainer.config.options import Config

__all__ = ["Schedule", "scaled_rate"]

_BASE_MINIBATCH = 256  # the minibatch that --lr is stated for


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """eta as a pure function of the iteration (counted from 0 over the whole run).

    During the first `warmup` iterations it climbs from `start` by equal amounts to `target`, or, if
    `constant`, stays at `start`. It is divided by 10 at each of `milestones` (iterations), or, if
    `cosine_until` is not 0, falls from the end of warmup to 0 at that iteration.
    """

    start: float
    target: float
    warmup: int
    milestones: tuple[int, ...]
    constant: bool = False
    cosine_until: int = 0

    @classmethod
    def from_config(cls, config: Config, iterations_per_epoch: int) -> Schedule:
        """The paper's schedule (section 5.1), or what its ablations change of it.

        Warmup starts at --warmup-start. Without it, it starts at the rate for 256 images, as in the
        paper; a minibatch that never gets above this rate starts at that of one worker alone.
        """
        target = scaled_rate(config.scaling, config.minibatch, config.lr)
        alone = scaled_rate(config.scaling, config.batch, config.lr)
        start = config.warmup_start or (config.lr if target > config.lr else alone)
        warmup = 0 if config.warmup == "none" else config.warmup_epochs
        epochs = config.milestones or (config.epochs * 2 / 3,)
        cosine = config.schedule == "cosine"
        return cls(
            start=min(start, target),
            target=target,
            warmup=round(warmup * iterations_per_epoch),
            milestones=() if cosine else tuple(round(e * iterations_per_epoch) for e in epochs),
            constant=config.warmup == "constant",
            cosine_until=config.epochs * iterations_per_epoch if cosine else 0,
        )

    def __call__(self, iteration: int) -> float:
        """Learning rate of `iteration`."""
        warmed_up = constant_warmup if self.constant else gradual_warmup
        eta = warmed_up(iteration, start=self.start, target=self.target, iterations=self.warmup)
        if self.cosine_until:
            return eta * cosine_decay(iteration, begin=self.warmup, end=self.cosine_until)
        return eta * step_decay(iteration, self.milestones)

    def __str__(self) -> str:
        rate = f"lr {self.target:g}"
        if self.warmup and self.start < self.target and self.constant:
            rate = f"lr {self.start:g} for {self.warmup} iterations, then {self.target:g}"
        elif self.warmup and self.start < self.target:
            rate = f"lr {self.start:g} to {self.target:g} over {self.warmup} iterations"
        if self.cosine_until:
            return f"{rate}, falling as a cosine to 0 at iteration {self.cosine_until}"
        return f"{rate}, / 10 at iteration {', '.join(map(str, self.milestones))}"


def scaled_rate(scaling: str, minibatch: int, reference: float) -> float:
    """The rate for `minibatch` images, `reference` being right for 256 of them.

    scaling: "linear" (the paper's rule), "sqrt", or "fixed" (always the reference).
    """
    if scaling == "fixed":
        return reference
    rule = {"linear": linear_scaling, "sqrt": sqrt_scaling}[scaling]
    return rule(minibatch, reference, _BASE_MINIBATCH)
