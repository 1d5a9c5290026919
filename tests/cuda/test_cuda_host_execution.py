"""The GPU's block bodies, run by g++ on the CPU, give the same bits as the CPU's reduce table."""

import ctypes
from collections.abc import Sequence

import host_kernels
import numpy as np
import pytest

from allreduce import _C

STORAGE = {
    "float64": "f8",
    "float32": "f4",
    "float16": "f2",
    "bfloat16": "u2",
    "int64": "i8",
    "int32": "i4",
    "int16": "i2",
    "int8": "i1",
    "uint8": "u1",
    "bool": "?",
}
FLOAT_OPS = ("sum", "avg", "min", "max", "prod")
OTHER_OPS = ("sum", "min", "max", "prod", "band", "bor", "bxor")
PAIRS = [(dtype, op) for dtype in STORAGE for op in (FLOAT_OPS if "float" in dtype else OTHER_OPS)]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    loaded = host_kernels.library("host_reduce", tmp_path_factory.mktemp("cuda"))
    loaded.host_reduce_many.restype = ctypes.c_long
    return loaded


def on_host(
    library: ctypes.CDLL,
    outs: Sequence[np.ndarray],
    sources: Sequence[np.ndarray],
    dtype: str,
    op: str,
    divisor: int = 1,
) -> int:
    """Runs the block bodies as 3 blocks of 32 threads; returns how many packs they used."""

    def addresses(arrays: Sequence[np.ndarray]) -> ctypes.Array[ctypes.c_void_p]:
        return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))

    packs = library.host_reduce_many(
        dtype.encode(),
        op.encode(),
        addresses(outs),
        ctypes.c_size_t(len(outs)),
        addresses(sources),
        ctypes.c_size_t(len(sources)),
        ctypes.c_size_t(outs[0].size),
        ctypes.c_int(divisor),
        ctypes.c_size_t(3),
        ctypes.c_size_t(32),
    )
    assert packs >= 0
    return int(packs)


def make(rng: np.random.Generator, dtype: str, count: int, start: int) -> np.ndarray:
    """Arbitrary bits, `start` elements behind a 16-byte boundary."""
    storage = np.dtype(STORAGE[dtype])
    if dtype == "bool":
        data = rng.integers(0, 2, (count + 32,)).astype(np.bool_)
    else:
        data = rng.integers(0, 256, (count + 32) * storage.itemsize, dtype=np.uint8).view(storage)
    boundary = -data.ctypes.data % 16 // storage.itemsize
    return data[boundary + start : boundary + start + count]


def bits(dtype: str, x: np.ndarray) -> np.ndarray:
    """The array's bytes, every NaN replaced by the same one."""
    x = x.copy()
    if dtype == "bfloat16":
        x[(x & 0x7FFF) > 0x7F80] = 0x7FC0
    elif "float" in dtype:
        x[np.isnan(x)] = np.nan
    return x.view(np.uint8)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("dtype", "op"), PAIRS)
def test_every_dtype_and_op_has_the_bits_of_the_cpu_table(
    library: ctypes.CDLL, rng: np.random.Generator, dtype: str, op: str
) -> None:
    for ways in (1, 2, 3, 4, 7, 8, 13, 128):
        for count, start in ((0, 0), (1, 1), (5, 0), (1003, 0), (1003, 1)):
            sources = [make(rng, dtype, count, start) for _ in range(ways)]
            expected = np.zeros_like(sources[0])
            _C.reduce_many([expected], sources, dtype, op)
            out = make(rng, dtype, count, start)
            packs = on_host(library, [out], sources, dtype, op)
            assert packs > 0 or count < 100
            np.testing.assert_array_equal(bits(dtype, out), bits(dtype, expected))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_the_sum_is_divided(library: ctypes.CDLL, rng: np.random.Generator, dtype: str) -> None:
    for divisor in (2, 3, 4099):
        sources = [make(rng, dtype, 1003, 0) for _ in range(4)]
        expected, out = np.zeros_like(sources[0]), make(rng, dtype, 1003, 0)
        _C.reduce_many([expected], sources, dtype, "avg", divisor)
        on_host(library, [out], sources, dtype, "avg", divisor)
        np.testing.assert_array_equal(bits(dtype, out), bits(dtype, expected))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("starts", [(0, 0, 0), (0, 1, 2), (3, 3, 3)])
def test_outs_may_be_sources_and_differ_in_alignment(
    library: ctypes.CDLL, rng: np.random.Generator, starts: tuple[int, ...]
) -> None:
    sources = [make(rng, "float32", 777, start) for start in starts]
    expected = np.zeros_like(sources[0])
    _C.reduce_many([expected], [source.copy() for source in sources], "float32", "sum")
    elsewhere = make(rng, "float32", 777, starts[0])
    packs = on_host(library, [elsewhere], sources, "float32", "sum")
    assert (packs > 0) == (len(set(starts)) == 1)
    packs = on_host(library, sources, sources, "float32", "sum")
    assert (packs > 0) == (len(set(starts)) == 1)
    for out in (elsewhere, *sources):
        np.testing.assert_array_equal(bits("float32", out), bits("float32", expected))
