"""What a rank without minibatches does while others go on: torch's Join for our wrapper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.distributed.algorithms.join import Join, JoinHook

from allreduce.torch.private_names import join_disabled

if TYPE_CHECKING:
    from allreduce.torch.ddp.module import DistributedDataParallel

__all__ = ["TakesPart", "announce"]

_NAME = "ranks with minibatches left"


def announce(model: DistributedDataParallel, flags: Sequence[bool]) -> tuple[int, int]:
    """Before a forward pass tells those that have joined already what it will reduce.

    Returns the last rank that goes on, whose buffers count, and by how many the mean divides.
    """
    work = Join.notify_join_context(model)
    if work is not None:
        work.wait()
    going, _ = _exchange(model, True, flags)
    whole = model._divides_by_all
    return int(going[-1]), model._comm.world_size if whole else going.size


class TakesPart(JoinHook):
    """Mirrors a pass of the others with zeros."""

    def __init__(self, model: DistributedDataParallel, **options: Any) -> None:
        self._model = model
        model._divides_by_all = options.get("divide_by_initial_world_size", True)

    def main_hook(self) -> None:
        """One iteration of the others."""
        model = self._model
        going, (changed, buffers, sync) = _exchange(model, False, [False] * 3)
        if changed:
            model._make_reducer()
        if buffers:
            model._broadcast_buffers(int(going[-1]))
        if sync:
            assert model._reducer is not None
            model._reducer.take_part()

    def post_hook(self, is_last_joiner: bool) -> None:
        """All have joined: the last of them has the module that counts."""
        model = self._model
        model._join_config = join_disabled()
        last, _ = _exchange(model, is_last_joiner, [])
        model._broadcast_all(int(last[-1]))


def _exchange(
    model: DistributedDataParallel, mine: bool, flags: Sequence[bool]
) -> tuple[np.ndarray[Any, Any], list[bool]]:
    """The ranks that say yes, and which flags are set on any rank."""
    comm = model._comm
    told = np.zeros(comm.world_size + len(flags), np.int32)
    told[comm.rank] = mine
    told[comm.world_size :] = flags
    comm.allreduce(told, name=_NAME)
    return np.flatnonzero(told[: comm.world_size]), (told[comm.world_size :] > 0).tolist()
