"""What a schedule must compute: its plain execution, on numbers or anything that can be combined.

A round reads before it writes; its reductions into one chunk follow the list order. That is all
that an engine may rely on, so the bits of `expected` are the bits of every transport and segment.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from arithmetic import combine, quotient

from allreduce.schedules import Schedule, even_bounds


def execute(
    schedule: Schedule, cells: list[list[Any]], combine: Callable[[Any, Any], Any]
) -> list[list[Any]]:
    """Runs a schedule on cells[rank][chunk]; combine(own, received) returns a new cell."""
    cells = [list(row) for row in cells]
    for moves in schedule.rounds:
        carried = [cells[src][lo:hi] for src, _, lo, hi, _ in moves]
        for (_, dst, lo, _, reduce), data in zip(moves, carried, strict=True):
            for c, received in enumerate(data, lo):
                cells[dst][c] = combine(cells[dst][c], received) if reduce else received
    return cells


def expected(
    schedule: Schedule,
    inputs: Sequence[np.ndarray],
    *,
    dtype: str = "float32",
    op: str = "sum",
    bounds: Sequence[int] | None = None,
) -> list[np.ndarray]:
    """The buffer of every rank after a run, bit for bit.

    inputs: one array [count] a rank, of arithmetic.STORAGE[dtype]. bounds: num_chunks + 1 element
    offsets, even ones if None. For avg the sum is divided at the end, as the library does.
    """
    count = len(inputs[0])
    bounds = even_bounds(count, schedule.num_chunks) if bounds is None else bounds
    cells = [[x[a:b] for a, b in pairwise(bounds)] for x in inputs]
    done = execute(schedule, cells, lambda own, new: combine(dtype, op, own, new))
    results = [np.concatenate(row) for row in done]
    if op == "avg":
        results = [quotient(dtype, x, schedule.world_size) for x in results]
    return results
