"""The options of a communicator: what may be asked for, and what a tuning and the ranks add."""

from __future__ import annotations

import os
from typing import Any, get_args

from allreduce import _C
from allreduce.communicator.types import LocalForm
from allreduce.errors import UsageError
from allreduce.rendezvous.connect import Connections, connect
from allreduce.rendezvous.node_layout import NodesOption
from allreduce.rendezvous.store import Store
from allreduce.tuning import cost
from allreduce.tuning.option import TuningRequest

__all__ = ["check_options", "connect_ranks", "layout_of", "with_tuning"]

_LOCAL_FORMS: tuple[str, ...] = get_args(LocalForm)


def connect_ranks(
    store: Store,
    rank: int,
    world_size: int,
    request: TuningRequest,
    options: dict[str, Any],
    nodes: NodesOption,
    checksum: bool | None,
    generation: int,
) -> Connections:
    """Connect this rank with the others, by the options that from_store was given."""
    return connect(
        store,
        rank,
        world_size,
        nodes=nodes,
        lanes=options["lanes"],
        connect_to=options["connect"],
        checksum=checksum,
        arena_bytes=lambda local_size: _C.arena_bytes(local_size, options["lanes"]),
        timeout=options["timeout"],
        generation=generation,
        dead_after=options["dead_after"],
        tuning=request.digest,
        refusal=request.failure,
    )


def with_tuning(
    connections: Connections, options: dict[str, Any], request: TuningRequest
) -> dict[str, Any]:
    """Return the options with those that the tuning and the ranks decide."""
    layout = cost.Layout(node_of_rank=tuple(connections.node_of_rank), local=options["local"])
    try:
        request.check_fit(layout)
    except UsageError:
        connections.close()
        raise
    return {
        **options,
        "rails": request.rails(options["rails"], layout),
        "segment_bytes": request.segment_bytes(options["segment_bytes"], layout),
        "tuning": request.tuning,
        "checksum": connections.checksum,
    }


def layout_of(connections: Connections, options: dict[str, Any]) -> cost.Layout:
    """Return the layout that the cost model knows the group by."""
    return cost.Layout(
        node_of_rank=tuple(connections.node_of_rank),
        local=options["local"],
        rails=options["rails"],
        segment_bytes=options["segment_bytes"],
        ranks_per_core=connections.ranks_on_host / len(os.sched_getaffinity(0)),
    )


def check_options(
    timeout: float, local: str, rails: int | None, segment_bytes: int | None, generation: int
) -> None:
    """Raise UsageError for a value that makes no sense."""
    if local not in _LOCAL_FORMS:
        raise UsageError(f"local={local!r}: must be one of {', '.join(_LOCAL_FORMS)}")
    if not timeout > 0:
        raise UsageError(f"timeout={timeout}: must be a positive number of seconds")
    if (rails or 0) < 0 or (segment_bytes is not None and segment_bytes < 64):
        raise UsageError("rails must be 0 or more, segment_bytes 64 or more")
    if not 0 <= generation < 1 << 16:
        raise UsageError(f"generation={generation}: must be in 0..65535")
