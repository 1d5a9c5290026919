"""A NumPy oracle of the reductions, one addition at a time, and inputs that provoke every case."""

import types
from collections.abc import Sequence

import numpy as np
import pytest
from arithmetic import FLOATS, STORAGE, combine, narrow, quotient, widen


def tree(dtype: str, op: str, sources: Sequence[np.ndarray]) -> np.ndarray:
    """tree(k) = tree(largest power of two <= k) op tree(the rest)."""
    count = len(sources)
    if count == 1:
        return sources[0]
    half = 1 << ((count - 1).bit_length() - 1)
    return combine(dtype, op, tree(dtype, op, sources[:half]), tree(dtype, op, sources[half:]))


def make(rng: np.random.Generator, dtype: str, count: int) -> np.ndarray:
    """Half arbitrary bits (subnormals, infinities, NaN), half ordinary numbers and signed zeros."""
    if dtype == "bool":
        return rng.integers(0, 2, count).astype(np.bool_)
    storage = np.dtype(STORAGE[dtype])
    bits = rng.integers(0, 256, count * storage.itemsize, dtype=np.uint8).view(storage)
    if dtype not in FLOATS:
        return bits
    with np.errstate(all="ignore"):
        ordinary = rng.standard_normal(count).astype(
            np.float64 if dtype == "float64" else np.float32
        )
        zeros = rng.integers(0, 8, count)
        ordinary[zeros == 0] = 0.0
        ordinary[zeros == 1] = -0.0
        return np.where(rng.integers(0, 2, count) == 0, bits, narrow(dtype, ordinary))


def assert_same(dtype: str, actual: np.ndarray, expected: np.ndarray) -> None:
    """The same bits; a NaN may be any NaN."""
    if dtype in FLOATS:
        nan = np.isnan(widen(dtype, expected))
        np.testing.assert_array_equal(np.isnan(widen(dtype, actual)), nan)
        actual, expected = actual[~nan], expected[~nan]
    assert actual.tobytes() == expected.tobytes()


def ops_of(dtype: str) -> tuple[str, ...]:
    if dtype in FLOATS:
        return ("sum", "avg", "min", "max", "prod")
    return ("sum", "min", "max", "prod", "band", "bor", "bxor")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every dtype with every operation that it supports."""
    if {"dtype", "op"} <= set(metafunc.fixturenames):
        pairs = [(dtype, op) for dtype in STORAGE for op in ops_of(dtype)]
        metafunc.parametrize(("dtype", "op"), pairs)


@pytest.fixture(scope="session")
def oracle() -> types.SimpleNamespace:
    return types.SimpleNamespace(
        storage=STORAGE,
        floats=FLOATS,
        combine=combine,
        tree=tree,
        quotient=quotient,
        make=make,
        assert_same=assert_same,
    )
