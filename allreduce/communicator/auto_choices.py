"""What `algo="auto"` goes by: a communicator measures itself, or follows a given tuning."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from allreduce.tuning import limits
from allreduce.tuning.measurement import BRIEFLY, Depth, measure

if TYPE_CHECKING:
    from allreduce.communicator.communicator import Communicator

__all__ = ["follow_or_measure", "measure_and_follow", "measure_once"]

log = logging.getLogger("allreduce")


def follow_or_measure(comm: Communicator, may_measure: bool) -> None:
    """Follow the tuning that was given, or measure briefly, if it may. Every rank calls it."""
    if comm.tuning is None:
        if may_measure:
            measure_and_follow(comm, BRIEFLY)
    else:
        _agree_on_cores(comm)
        _follow(comm)


def measure_and_follow(comm: Communicator, depth: Depth) -> None:
    """Measure, and choose algorithms by it; all ranks choose alike. Every rank calls it."""
    _agree_on_cores(comm)
    found = measure(comm, depth)
    if found is None:
        log.info("nothing is measured: calls take too long; comm.measure() measures all the same")
        comm._options = {**comm._options, "measure": False}  # nor is a part of the group
        return
    comm.tuning = found
    _follow(comm)


def measure_once(comm: Communicator) -> None:
    """Measure well where `init` has measured briefly: for who will call for minutes.

    Every rank calls it. It does nothing where a tuning was given, or nothing may be measured.
    """
    if comm.tuning and comm.tuning.brief:
        comm.measure()


def _agree_on_cores(comm: Communicator) -> None:
    """Take the most ranks that share a core: machines may differ, and the model goes by it."""
    here = np.array([comm.layout.ranks_per_core])
    comm.layout = replace(comm.layout, ranks_per_core=float(comm.allreduce(here, "max")[0]))


def _follow(comm: Communicator) -> None:
    assert comm.tuning is not None
    rows = limits(comm.tuning.choices(comm.layout))
    log.debug("%s: %s; %s", comm.tuning.source, comm.tuning.links, rows)
    comm._group.set_choices(rows)
