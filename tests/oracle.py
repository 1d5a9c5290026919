"""What a schedule must compute: its plain execution, on numbers or anything that can be combined.

A round reads before it writes; its reductions into one chunk follow the list order. That is all
that an engine may rely on, so the bits of `expected` are the bits of every transport and segment.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from allreduce.schedules import Schedule, even_bounds

# How an array of each dtype is stored; NumPy has no bfloat16.
STORAGE = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint8": np.uint8,
    "bool": np.bool_,
}
_BITS = {"band": np.bitwise_and, "bor": np.bitwise_or, "bxor": np.bitwise_xor}
_BOOLEAN = {
    "sum": np.logical_or,
    "max": np.logical_or,
    "prod": np.logical_and,
    "min": np.logical_and,
}


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


def combine_arrays(dtype: str, op: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a op b, elementwise, in the storage dtype; 16-bit floats by way of float32."""
    if op in _BITS:
        return _BITS[op](a, b)
    if dtype == "bool":
        return _BOOLEAN[op](a, b)
    with np.errstate(all="ignore"):
        x, y = widen(dtype, a), widen(dtype, b)
        result = {
            "sum": np.add,
            "avg": np.add,
            "prod": np.multiply,
            "min": np.minimum,
            "max": np.maximum,
        }[op](x, y)
        return narrow(dtype, result)


def widen(dtype: str, x: np.ndarray) -> np.ndarray:
    """16-bit floats as float32, everything else as it is."""
    if dtype == "bfloat16":
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float32) if dtype == "float16" else x


def narrow(dtype: str, x: np.ndarray) -> np.ndarray:
    """The inverse of `widen`, rounding to nearest even."""
    if dtype == "bfloat16":
        bits = x.view(np.uint32).astype(np.uint64)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return np.where(np.isnan(x), 0x7FC0, rounded).astype(np.uint16)
    return x.astype(np.float16) if dtype == "float16" else x


def expected(
    schedule: Schedule,
    inputs: Sequence[np.ndarray],
    *,
    dtype: str = "float32",
    op: str = "sum",
    bounds: Sequence[int] | None = None,
) -> list[np.ndarray]:
    """The buffer of every rank after a run, bit for bit.

    inputs: one array [count] a rank, of STORAGE[dtype]. bounds: num_chunks + 1 element offsets,
    even ones if None. For avg the sum is divided at the end, as the library does.
    """
    count = len(inputs[0])
    bounds = even_bounds(count, schedule.num_chunks) if bounds is None else bounds
    cells = [[x[a:b] for a, b in pairwise(bounds)] for x in inputs]
    done = execute(schedule, cells, lambda own, new: combine_arrays(dtype, op, own, new))
    results = [np.concatenate(row) for row in done]
    if op == "avg":
        results = [_quotient(dtype, x, schedule.world_size) for x in results]
    return results


def _quotient(dtype: str, x: np.ndarray, divisor: int) -> np.ndarray:
    wide = widen(dtype, x)
    return narrow(dtype, wide / wide.dtype.type(divisor))
