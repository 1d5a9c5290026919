"""How long a run takes, by the model of a training step (allreduce.tuning.training_step)."""

from __future__ import annotations

from collections.abc import Sequence

from allreduce.tuning.training_step import Message, slowest, step_seconds
from trainer.config.options import Config
from trainer.dry_run.communication import INSIDE, Allreduce

__all__ = ["BACKWARD", "ITERATION", "SIGMA", "duration"]

# The paper's server of 8 P100: seconds of an iteration of 256 images (29 h for 90 epochs on it,
# section 5.1), and of its backward pass (section 4).
ITERATION, BACKWARD = 0.2318, 0.120
_PAPER_RATE = 256 / 8 / ITERATION  # images a second and GPU
_PAPER_NETWORK, _PAPER_SIDE = "resnet50", 224
# How much the times of hosts vary: fitted to the paper's hour on 32 servers, 0.2558 s an iteration.
SIGMA = 0.048


def duration(config: Config, calls: Sequence[Allreduce], iterations: int, side: int) -> list[str]:
    """Return the lines on time: of communication alone, then of the whole run.

    iterations: of an epoch. side: pixels of an image.
    """
    alone = sum(call.waits + call.moves for call in calls)
    local = INSIDE.local
    lines = [
        "time, SIMULATED by the cost model",
        f"  assumed: {config.alpha:g} us a message and {config.gigabits:g} Gbit/s a node, inside "
        f"{local.alpha * 1e6:g} us and {8e-9 / local.beta:g} Gbit/s",
        f"  {'allreduces of an iteration':<26}{alone * 1e3:>10,.2f} ms, one after another",
    ]
    rate = config.rate
    if not rate and (config.model, side) == (_PAPER_NETWORK, _PAPER_SIDE):
        rate = _PAPER_RATE
    if not rate:
        return [*lines, "  how long: say what a worker computes alone, --rate images a second"]
    computing = config.batch * config.workers / config.processes / rate
    steady = _step(config, calls, computing)
    varied = _step(config, calls, computing * slowest(config.nodes, SIGMA))
    whole = varied * iterations * config.epochs
    fit = f"as the paper's by a fit (log-normal, sigma {SIGMA:g})"
    return [
        *lines,
        f"  {'computing an iteration':<26}{computing * 1e3:>10,.2f} ms, at {rate:,.0f} images/s a "
        f"worker{'' if config.rate else ', as the P100 of the paper'}; backward "
        f"{BACKWARD / ITERATION:.0%} of it, as there",
        f"  {'an iteration':<26}{steady * 1e3:>10,.2f} ms, {(steady - computing) * 1e3:,.2f} ms of "
        f"communication not hidden: efficiency {computing / steady:.1%}",
        f"  {'where hosts vary':<26}{varied * 1e3:>10,.2f} ms, {fit}: efficiency "
        f"{computing / varied:.1%}",
        f"  {'an epoch':<26}{varied * iterations:>10,.1f} s",
        f"  {f'{config.epochs} epochs':<26}{whole / 3600:>10,.2f} hours; training alone, without "
        "evaluation and start",
    ]


def _step(config: Config, calls: Sequence[Allreduce], computing: float) -> float:
    """Return the seconds of an iteration of which computing takes so many.

    Virtual workers take turns, and gradients are reduced in the last one alone.
    """
    turns = 1 if config.ghost_bn else config.workers // config.processes
    backward = computing / turns * BACKWARD / ITERATION
    messages = (Message(call.ready * backward, call.waits, call.moves) for call in calls)
    return step_seconds(computing, backward, messages)
