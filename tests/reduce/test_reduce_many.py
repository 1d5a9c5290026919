"""The k-way reduction: the canonical tree's bits, for every k, instruction set and aliasing."""

import concurrent.futures
import types

import numpy as np
import pytest

from allreduce import _C

WAYS = (*range(1, 18), 31, 64, 100, 256)
COUNTS = (0, 1, 17, 1000, 5001)


@pytest.mark.timeout(60)
def test_every_dtype_and_op_follows_the_tree(
    oracle: types.SimpleNamespace, rng: np.random.Generator, dtype: str, op: str
) -> None:
    for ways, count in ((3, 5001), (6, 1000), (16, 17), (21, 5001)):
        sources = [oracle.make(rng, dtype, count) for _ in range(ways)]
        out = np.zeros_like(sources[0])
        _C.reduce_many([out], sources, dtype, op)
        oracle.assert_same(dtype, out, oracle.tree(dtype, op, sources))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("instruction_set", _C.instruction_sets())
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int16"])
@pytest.mark.parametrize("ways", WAYS)
def test_every_width_follows_the_tree(
    oracle: types.SimpleNamespace,
    rng: np.random.Generator,
    ways: int,
    dtype: str,
    instruction_set: str,
) -> None:
    for count in COUNTS if ways < 20 else COUNTS[-1:]:
        sources = [oracle.make(rng, dtype, count + 1)[1:] for _ in range(ways)]
        out = np.zeros_like(sources[0])
        _C.reduce_many([out], sources, dtype, "sum", 1, instruction_set)
        oracle.assert_same(dtype, out, oracle.tree(dtype, "sum", sources))


def chain(sources: list[np.ndarray], dtype: str) -> np.ndarray:
    """The same tree, by pairwise calls as messages over a wire would make them."""
    partial = [source.copy() for source in sources]
    distance = 1
    while distance < len(partial):
        for left in range(0, len(partial) - distance, 2 * distance):
            _C.reduce(partial[left], partial[left + distance], dtype, "sum")
        distance *= 2
    return partial[0]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("ways", [2, 4, 5, 7, 8, 12, 16, 64])
def test_one_pass_equals_pairwise_messages(
    oracle: types.SimpleNamespace, rng: np.random.Generator, ways: int, dtype: str
) -> None:
    sources = [oracle.make(rng, dtype, 3001) for _ in range(ways)]
    out = np.zeros_like(sources[0])
    _C.reduce_many([out], sources, dtype, "sum")
    oracle.assert_same(dtype, out, chain(sources, dtype))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("ways", [1, 2, 6, 8])
def test_the_average_is_the_divided_sum(
    oracle: types.SimpleNamespace, rng: np.random.Generator, ways: int, dtype: str
) -> None:
    sources = [oracle.make(rng, dtype, 3001) for _ in range(ways)]
    out = np.zeros_like(sources[0])
    _C.reduce_many([out], sources, dtype, "avg", ways)
    total = oracle.tree(dtype, "sum", sources)
    oracle.assert_same(dtype, out, oracle.quotient(dtype, total, ways))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
@pytest.mark.parametrize("ways", [1, 2, 3, 5, 8, 11, 16])
def test_outs_may_be_the_sources(
    oracle: types.SimpleNamespace, rng: np.random.Generator, ways: int, dtype: str
) -> None:
    sources = [oracle.make(rng, dtype, 5001) for _ in range(ways)]
    expected = oracle.tree(dtype, "sum", [source.copy() for source in sources])
    outs = [*sources[::-1], np.zeros_like(sources[0])]
    _C.reduce_many(outs, sources, dtype, "sum")
    for out in outs:
        oracle.assert_same(dtype, out, expected)


@pytest.mark.timeout(60)
def test_threads_do_not_disturb_each_other(
    oracle: types.SimpleNamespace, rng: np.random.Generator
) -> None:
    jobs = [[oracle.make(rng, "bfloat16", 20001) for _ in range(13)] for _ in range(4)]

    def reduced(sources: list[np.ndarray]) -> np.ndarray:
        out = np.zeros_like(sources[0])
        for _ in range(20):
            _C.reduce_many([out], sources, "bfloat16", "sum")
        return out

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for sources, out in zip(jobs, pool.map(reduced, jobs), strict=True):
            oracle.assert_same("bfloat16", out, oracle.tree("bfloat16", "sum", sources))
