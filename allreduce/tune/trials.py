"""The thorough measurements of `python -m allreduce.tune`: algorithms, then options of a group."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from allreduce.communicator.communicator import Communicator
from allreduce.rendezvous.store import PrefixStore
from allreduce.schedules import algorithms
from allreduce.tune.options import TuneOptions
from allreduce.tuning import LayoutTuning, Times, Tuning, decide, slopes
from allreduce.tuning.measurement import (
    Contestants,
    allreduce_contestants,
    call_of,
    fit,
    size_sweep,
)
from allreduce.tuning.timing import TimeBudget, time_alternating

__all__ = ["Trial", "algorithm_times", "best_options", "tuned_by"]

_EFFORT = TimeBudget(seconds=0.5, least_turns=3, most_turns=15)
_TRIAL_EFFORT = TimeBudget(seconds=1.0, least_turns=5, most_turns=21)
_TRIAL_SIZES = (1 << 20, 16 << 20)  # bytes
_BETTER = 0.95  # of the time: less is noise, and keeps what there is
_IN_FLIGHT = 8
_IN_FLIGHT_BYTES = 256 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """An option's values and what they took, relative to the first; the value that was taken."""

    option: str
    ratios: Mapping[int, float]
    taken: int


def algorithm_times(comm: Communicator, options: TuneOptions) -> Iterator[tuple[str, Times]]:
    """Yield the times of each collective that has a choice of algorithms, and of an allreduce."""
    for collective in options.collectives:
        if collective == "allreduce":
            field = allreduce_contestants(comm.layout)
        else:
            names = algorithms(collective)
            if len(names) < 2:
                continue
            field = Contestants(collective=collective, sent=dict.fromkeys(names, 0.0))
        yield collective, size_sweep(comm, field, options.sizes(), _EFFORT, options.seconds)


def tuned_by(comm: Communicator, times: Mapping[str, Times]) -> Tuning:
    """Return the links and choices that follow from the times of collectives."""
    layout = comm.layout
    links = fit(comm, times["allreduce"]) if "allreduce" in times else {}
    choices = {}
    for name, found in times.items():
        if name != "allreduce":
            choices[name] = decide(found)
        elif layout.ranks_of_schedule > 1:
            choices[name] = decide(found, slopes(layout, found, links))
    tuned = LayoutTuning(nodes=layout.nodes, local=layout.local, choices=choices, times=dict(times))
    return Tuning(links=links, layouts=(tuned,))


def best_options(comm: Communicator, tuning: Tuning) -> Iterator[Trial]:
    """Yield what segments, rails and lanes take, where there is a choice, on groups of their own.

    All groups of an option live at once and take turns.
    """
    layout = comm.layout
    own = comm._options
    if layout.ranks_of_schedule > 1:
        yield _trial(comm, tuning, "segment_bytes", [own["segment_bytes"], 64 << 10, 1 << 20])
    most = min(layout.nodes)
    if layout.has_local_stage and layout.ranks_of_schedule > 1 and layout.local == "rs_ag":
        fewer = [rails for rails in (1, most // 2) if 0 < rails < most]
        yield _trial(comm, tuning, "rails", [0, *dict.fromkeys(fewer)])
    yield _trial(comm, tuning, "lanes", [own["lanes"], 1, 4])


def with_options(tuning: Tuning, trials: Sequence[Trial]) -> Tuning:
    """Return the tuning with the options that were taken."""
    options: dict[str, Any] = {trial.option: trial.taken for trial in trials}
    return replace(tuning, layouts=(replace(tuning.layouts[0], **options),))


def _trial(comm: Communicator, tuning: Tuning, option: str, values: Sequence[int]) -> Trial:
    buffer = np.zeros(max(*_TRIAL_SIZES, _IN_FLIGHT * _IN_FLIGHT_BYTES) // 4, np.float32)
    ratios: dict[int, list[float]] = {value: [] for value in values}
    with contextlib.ExitStack() as stack:
        groups = {
            value: stack.enter_context(_alike(comm, tuning, f"{option}/{value}", {option: value}))
            for value in values
        }
        kinds: list[Callable[[Communicator], Callable[[], None]]]
        if option == "lanes":  # of use to calls that are in flight together
            kinds = [lambda group: partial(_several, group, buffer)]
        else:
            kinds = [
                partial(call_of, collective="allreduce", buffer=buffer, size=size, algorithm="auto")
                for size in _TRIAL_SIZES
            ]
        for kind in kinds:
            calls = {str(value): kind(group) for value, group in groups.items()}
            seconds, _ = time_alternating(comm, calls, _TRIAL_EFFORT)
            for value in values:
                ratios[value].append(seconds[str(value)] / seconds[str(values[0])])
    means = {value: float(np.exp(np.mean(np.log(found)))) for value, found in ratios.items()}
    best = min(values, key=lambda value: means[value])
    better = means[best] <= _BETTER and max(ratios[best]) < 1 / _BETTER
    return Trial(option=option, ratios=means, taken=best if better else values[0])


def _alike(
    comm: Communicator, tuning: Tuning, name: str, changes: Mapping[str, int]
) -> Communicator:
    """Return a group of the same ranks with another option."""
    return type(comm).from_store(
        PrefixStore(comm._store, f"tune/{name}/"),
        comm.rank,
        comm.world_size,
        nodes=[str(node) for node in comm.node_of_rank],
        **{**comm._options, "tuning": tuning, **changes},
    )


def _several(group: Communicator, data: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    count = _IN_FLIGHT_BYTES // 4
    works = [
        group.allreduce(data[i * count : (i + 1) * count], async_op=True) for i in range(_IN_FLIGHT)
    ]
    for work in works:
        work.wait()
