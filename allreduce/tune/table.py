"""The crossover tables that `python -m allreduce.tune` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from allreduce.tune.trials import Trial
from allreduce.tuning import Choice, Times, Tuning
from allreduce.tuning.cost import Layout

__all__ = ["table", "trial_line"]

_WIDTH = 19


def table(layout: Layout, tuning: Tuning, collective: str, times: Times) -> Iterator[str]:
    """Yield a row for each size: the algorithms' times, what is chosen, the model and its error.

    The model's figures, of an allreduce, are of the algorithm that is chosen.
    """
    choices = tuning.layouts[0].choices.get(collective, ())
    heads = "".join(f"{name:>{_WIDTH}}" for name in times)
    yield f"{collective}: us a call, the median of turns"
    yield f"{'size B':>11}{heads}   {'chosen':<19} {'model':>9} {'error':>7}"
    errors = []
    for nbytes in sorted({nbytes for points in times.values() for nbytes, _ in points}):
        found = {name: dict(points).get(nbytes) for name, points in times.items()}
        cells = "".join(f"{_us(seconds):>{_WIDTH}}" for seconds in found.values())
        chosen = _chosen(choices, nbytes) or next(iter(times))
        model = tuning.predict(layout, chosen, nbytes) if collective == "allreduce" else None
        error, seconds = None, found.get(chosen)
        if model is not None and seconds:
            error = model / seconds - 1
            errors.append(abs(error))
        shown = "" if error is None else f"{error:+.0%}"
        yield f"{nbytes:>11}{cells}   {chosen:<19} {_us(model):>9} {shown:>7}"
    if errors:
        yield f"mean error of the model: {sum(errors) / len(errors):.0%}"
    yield ""


def trial_line(trial: Trial) -> str:
    """Return what the values of an option took, relative to the first."""
    ratios = ", ".join(f"{value}: {ratio:.2f}" for value, ratio in trial.ratios.items())
    return f"{trial.option}: time by value {ratios}; taken {trial.taken}"


def _chosen(choices: Sequence[Choice], nbytes: int) -> str:
    fitting = (c.algorithm for c in choices if c.up_to is None or nbytes <= c.up_to)
    return next(fitting, "")


def _us(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e6:.1f}"
