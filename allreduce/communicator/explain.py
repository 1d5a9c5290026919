"""What a communicator does for an allreduce of some size and why, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allreduce import _C
from allreduce.communicator.arrays import itemsize
from allreduce.tuning import EXTRAPOLATED, MEASURED, PREDICTED, Tuning, candidates

if TYPE_CHECKING:
    from allreduce.communicator.communicator import Communicator

__all__ = ["explain"]

_NAME_WIDTH = 20
_HOW = {
    MEASURED: "measured near this size",
    EXTRAPOLATED: "measured, at other sizes",
    PREDICTED: "predicted by the model",
}


def explain(comm: Communicator, nbytes: int, dtype: str) -> str:
    """Return what `algo="auto"` does with a buffer of `nbytes`, line by line."""
    itemsize(dtype)
    lines = [f"allreduce of {nbytes} B {dtype} on {comm.layout}: {_stages(comm, nbytes)}"]
    lines.append(_options(comm))
    tuning = comm.tuning
    if comm.world_size == 1:
        return "\n".join(lines)
    if tuning is None:
        return "\n".join([*lines, "why: by default thresholds, nothing was measured"])
    lines += _reasons(comm, tuning, nbytes)
    links = "; ".join(f"{kind.replace('_', ' ')}: {link}" for kind, link in tuning.links.items())
    return "\n".join([*lines, f"figures: {tuning.source}; {links or 'no links'}"])


def _stages(comm: Communicator, nbytes: int) -> str:
    layout = comm.layout
    if comm.world_size == 1:
        return "nothing, there is one rank"
    if layout.ranks_of_schedule == 1:
        return "in shared memory only; no schedule runs between nodes"
    name = comm._group.choose(_C.Collective.allreduce, nbytes)
    ranks = layout.ranks_of_schedule
    if not layout.has_local_stage:
        return f"{name} among {ranks} ranks"
    rails = f"{layout.shards} rail{'s' if layout.shards > 1 else ''}"
    return (
        f"local reduce-scatter -> {name} among {ranks} nodes, on {rails} -> local allgather; "
        f"each rail carries {nbytes // layout.shards} B"
    )


def _options(comm: Communicator) -> str:
    options = comm._options
    return f"segments of {options['segment_bytes']} B, {options['lanes']} lanes"


def _reasons(comm: Communicator, tuning: Tuning, nbytes: int) -> list[str]:
    """Return the time of each algorithm, fastest first."""
    layout = comm.layout
    chosen = comm._group.choose(_C.Collective.allreduce, nbytes)
    stands_for = candidates(layout)
    found = {
        name: seconds
        for name in dict.fromkeys(stands_for.values())
        if (seconds := tuning.seconds(layout, name, nbytes)) is not None
    }
    if not found:
        return [f"why: {chosen} by default thresholds, these links were not measured"]
    # What was measured comes first: an algorithm that was given up has a prediction only.
    order = sorted(found, key=lambda name: (found[name][1] == PREDICTED, found[name][0]))
    rows = []
    for name in order:
        same = [other for other, one in stands_for.items() if one == name != other]
        note = f" (so {', '.join(same)})" if same and len(found) > 1 else ""
        mark = " <-" if name == stands_for[chosen] and len(found) > 1 else ""
        rows.append(_row(name, tuning, comm, nbytes) + note + mark)
    if len(found) == 1:
        return rows
    return [f"why: fastest of those {_HOW[found[order[0]][1]]}, or as fast and preferred", *rows]


def _row(name: str, tuning: Tuning, comm: Communicator, nbytes: int) -> str:
    texts = []
    found = tuning.seconds(comm.layout, name, nbytes)
    if found is not None and found[1] != PREDICTED:
        texts.append(f"{found[1]} {found[0] * 1e6:.0f} us")
    if found is not None and found[1] == EXTRAPOLATED:
        sizes = tuning.measured_sizes(comm.layout, name)
        texts[-1] += f" (measured from {sizes[0]} to {sizes[1]} B)" if sizes else ""
    predicted, empty = (tuning.predict(comm.layout, name, size) for size in (nbytes, 0))
    if predicted and empty is not None:
        share = f"{empty / predicted:.0%} for messages, {1 - empty / predicted:.0%} for bytes"
        texts.append(f"{PREDICTED} {predicted * 1e6:.0f} us: {share}")
    return f"  {name:<{_NAME_WIDTH}} {', '.join(texts)}"
