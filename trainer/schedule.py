"""The learning rate of a run: linear scaling, gradual warmup per iteration, steps of 1/10."""

from __future__ import annotations

from dataclasses import dataclass

from allreduce.optim.schedules import gradual_warmup, linear_scaling, step_decay
from trainer.options import Config

__all__ = ["Schedule"]

_BASE_MINIBATCH = 256  # the minibatch that --lr is stated for


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """eta as a pure function of the iteration (counted from 0 over the whole run).

    It climbs from `start` by equal amounts to `target` during the first `warmup` iterations, and
    is divided by 10 at each of `milestones` (iterations).
    """

    start: float
    target: float
    warmup: int
    milestones: tuple[int, ...]

    @classmethod
    def from_config(cls, config: Config, iterations_per_epoch: int) -> Schedule:
        """The paper's schedule (section 5.1) for this minibatch and this many iterations an epoch.

        Warmup starts at the reference rate (0.1), as in the paper. A minibatch of 256 images or
        fewer never gets there: it starts at the rate that the linear rule gives one worker alone.
        """
        target = linear_scaling(config.minibatch, config.lr, _BASE_MINIBATCH)
        alone = linear_scaling(config.batch, config.lr, _BASE_MINIBATCH)
        epochs = config.milestones or (config.epochs * 2 / 3,)
        return cls(
            start=config.lr if target > config.lr else alone,
            target=target,
            warmup=round(config.warmup_epochs * iterations_per_epoch),
            milestones=tuple(round(epoch * iterations_per_epoch) for epoch in epochs),
        )

    def __call__(self, iteration: int) -> float:
        """Learning rate of `iteration`."""
        eta = gradual_warmup(
            iteration, start=self.start, target=self.target, iterations=self.warmup
        )
        return eta * step_decay(iteration, self.milestones)

    def __str__(self) -> str:
        steps = ", ".join(map(str, self.milestones))
        rise = f"{self.start:g} to {self.target:g} over {self.warmup} iterations"
        return f"eta {rise if self.warmup else f'{self.target:g}'}, / 10 at iteration {steps}"
