"""Values by which a benchmark checks results: exact in every dtype, for any number of ranks.

All are integers of 0 to 127. Of a reduction, at most six ranks contribute to an element, and the
others give the neutral one: so any order of additions is exact in bfloat16 and int8 too, and still
a contribution that is lost, doubled or out of place is seen. Arrays repeat a pattern whose length
is a prime, so that chunks in each other's place differ.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = np.ndarray[Any, Any]
Integers = npt.NDArray[np.int64]

PERIOD = 1009
_CONTRIBUTORS = 6
_BLOCK = PERIOD << 9  # elements that are compared at once
# By operation: the neutral value; the least one to contribute, and how many from there on.
_VALUES = {
    "sum": (0, 1, 15),  # 6 * 15 < 128
    "avg": (0, 1, 15),
    "prod": (1, 1, 2),  # 2 ** 6 < 128
    "min": (100, 0, 100),
    "max": (0, 0, 100),
    "band": (127, 0, 128),
    "bor": (0, 0, 128),
    "bxor": (0, 0, 128),
}
_FOLDS = {
    "sum": np.add,
    "avg": np.add,
    "prod": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
    "band": np.bitwise_and,
    "bor": np.bitwise_or,
    "bxor": np.bitwise_xor,
}
_OF_TRUTH = {"sum": "bor", "max": "bor", "prod": "band", "min": "band"}  # what bool makes of it


def storage(dtype: str) -> np.dtype[Any]:
    """Return NumPy's dtype in which one of ours is stored; NumPy has no bfloat16."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)


def contribution(op: str, dtype: str, rank: int, ranks: int, salt: int) -> Array:
    """Return the pattern that `rank` gives to a reduction over `ranks` ranks.

    salt: makes it another one, say for another call.
    """
    return _stored(_contribution(op, dtype, rank, ranks, salt), dtype)


def reduced(op: str, dtype: str, ranks: int, salt: int) -> Array:
    """Return the pattern of the result."""
    of_bits = _OF_TRUTH.get(op, op) if dtype == "bool" else op
    total = _contribution(op, dtype, 0, ranks, salt)
    for rank in range(1, ranks):
        total = _FOLDS[of_bits](total, _contribution(op, dtype, rank, ranks, salt))
    if op == "avg":  # a division of the exact sum, rounded once
        wide = np.dtype("float64" if dtype == "float64" else "float32")
        return _stored(np.divide(total.astype(wide), ranks, dtype=wide), dtype)
    return _stored(total, dtype)


def moved(dtype: str, source: int, part: int, salt: int) -> Array:
    """Return the pattern of what `source` gives to a collective that only moves, in `part`."""
    values = _noise(source, part, salt) & 127
    return _stored(values & 1 if dtype == "bool" else values, dtype)


def fill(array: Array, pattern: Array) -> None:
    """Fill a flat array with a pattern again and again."""
    whole = array.size // PERIOD * PERIOD
    array[:whole].reshape(-1, PERIOD)[:] = pattern
    array[whole:] = pattern[: array.size - whole]


def count_wrong(array: Array, pattern: Array) -> int:
    """Return how many elements of a flat array are not what `fill` would have put there."""
    wrong = 0
    for begin in range(0, array.size, _BLOCK):
        block = array[begin : begin + _BLOCK]
        whole = block.size // PERIOD * PERIOD
        wrong += int(np.count_nonzero(block[:whole].reshape(-1, PERIOD) != pattern))
        wrong += int(np.count_nonzero(block[whole:] != pattern[: block.size - whole]))
    return wrong


def _contribution(op: str, dtype: str, rank: int, ranks: int, salt: int) -> Integers:
    turns = -(-ranks // _CONTRIBUTORS)
    mine = (np.arange(PERIOD) + salt + rank) % turns == 0
    noise = _noise(rank, 0, salt)
    if dtype == "bool":  # seldom not neutral, so that one alone often decides
        neutral = int(_OF_TRUTH.get(op, op) == "band")
        return np.where(mine & (noise % 4 == 0), 1 - neutral, neutral)
    neutral, least, number = _VALUES[op]
    return np.where(mine, least + noise % number, neutral)


def _noise(source: int, part: int, salt: int) -> Integers:
    """Integers of 32 bits in no order, the same on every machine (multiply and shift)."""
    start = source * 0x85EBCA77 + part * 0xC2B2AE3D + salt * 0x27D4EB2F
    x = np.arange(PERIOD, dtype=np.uint32) * np.uint32(0x9E3779B1) + np.uint32(start & 0xFFFFFFFF)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x2C1B3C6D)
    x = (x ^ (x >> np.uint32(12))) * np.uint32(0x297A2D39)
    return (x ^ (x >> np.uint32(15))).astype(np.int64)


def _stored(values: npt.NDArray[Any], dtype: str) -> Array:
    if dtype != "bfloat16":
        return values.astype(storage(dtype))
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
