"""Runs in a terminal: a line for each epoch, final errors over seeds, scaling."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from trainer.output.end_table import PHASE_NAMES, PHASES
from trainer.report.runs import Run, by_seed, final_error, has_median, scaling

__all__ = ["compared", "epochs"]

_BAR = 40  # characters for an error of 100%
_MOST_LINES = 30


def epochs(run: Run) -> str:
    """The curves: training and test error, learning rate and images per second, at each test."""
    lines = ["  epoch   lr       train error  test error"]
    tests = run.test[:: -(-len(run.test) // _MOST_LINES)] if run.test else []
    if tests and tests[-1] is not run.test[-1]:
        tests.append(run.test[-1])
    for test in tests:
        before = [line for line in run.train if line["epoch"] <= test["epoch"] + 1e-9]
        if before:
            error = test["test_error"]
            lines.append(
                f"  {test['epoch']:<8.4g}{before[-1]['eta']:<9.4g}"
                f"{before[-1]['train_error']:>11.1%}{error:>12.1%}  {'#' * round(_BAR * error)}"
            )
    return "\n".join([*lines, *_final(run)])


def compared(runs: Sequence[Run]) -> str:
    """Several runs side by side: final error, images per second, time split, seeds, scaling."""
    width = max(len(run.name) for run in runs)
    head = "  ".join(f"{PHASE_NAMES.get(phase, phase).split()[0]:>9}" for phase in PHASES)
    lines = [f"{'run':<{width}}  workers  final error  images/s  {head}"]
    for run in runs:
        error = final_error(run)
        spent = [sum(line[f"{phase}_seconds"] for line in run.train) for phase in PHASES]
        shares = "  ".join(f"{part / sum(spent):>9.1%}" for part in spent)
        lines.append(
            f"{run.name:<{width}}  {run.workers:>7}  {'-' if error is None else f'{error:.2%}':>11}"
            f"  {run.images_per_second:>8,.0f}  {shares}"
        )
    for name, errors in by_seed(runs):
        if len(errors) > 1:
            mean, deviation = statistics.mean(errors), statistics.stdev(errors)
            lines.append(
                f"{name}: final error {mean:.2%} +- {deviation:.2%} (mean and standard deviation "
                f"of {len(errors)} seeds)"
            )
    for name, rows in scaling(runs):
        lines += [name, "workers  images/s  efficiency"]
        lines += [f"{k:>7}  {rate:>8,.0f}  {efficiency:>10.1%}" for k, rate, efficiency in rows]
    return "\n".join(lines)


def _final(run: Run) -> list[str]:
    error = final_error(run)
    if error is None:
        return []
    if has_median(run):
        return [f"  final error {error:.2%} (median of the last 5 epochs)"]
    return [f"  last test {error:.2%} (a median of 5 epochs is told of runs of 20 and more)"]
