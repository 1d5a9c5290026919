"""The library's elementwise arithmetic on NumPy arrays, bit for bit, bfloat16 included."""

import numpy as np

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
FLOATS = ("float64", "float32", "float16", "bfloat16")
BITS = {"band": np.bitwise_and, "bor": np.bitwise_or, "bxor": np.bitwise_xor}
BOOLEAN = {
    "sum": np.logical_or,
    "max": np.logical_or,
    "prod": np.logical_and,
    "min": np.logical_and,
} | BITS


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


def float_extreme(op: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Minimum or maximum that propagates NaN and orders -0 before +0."""
    below = np.less(a, b) | (np.equal(a, b) & np.signbit(a))
    smaller = np.where(below, a, b)
    larger = np.where(below, b, a)
    result = smaller if op == "min" else larger
    return np.where(np.isnan(a) | np.isnan(b), np.array(np.nan, a.dtype), result)


def combine(dtype: str, op: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a op b, elementwise, in the storage dtype."""
    if dtype == "bool":
        return BOOLEAN[op](a, b)
    if op in BITS:
        return BITS[op](a, b)
    with np.errstate(all="ignore"):
        x, y = widen(dtype, a), widen(dtype, b)
        if op in ("sum", "avg"):
            result = x + y
        elif op == "prod":
            result = x * y
        elif dtype in FLOATS:
            result = float_extreme(op, x, y)
        else:
            result = np.minimum(x, y) if op == "min" else np.maximum(x, y)
        return narrow(dtype, result)


def quotient(dtype: str, a: np.ndarray, divisor: int) -> np.ndarray:
    x = widen(dtype, a)
    with np.errstate(all="ignore"):
        return narrow(dtype, x / x.dtype.type(divisor))
