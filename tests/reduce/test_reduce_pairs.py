"""dst = dst op src: every dtype, operation, instruction set, odd count and unaligned start."""

import itertools
import types

import numpy as np
import pytest

from allreduce import _C

COUNTS = (0, 1, 15, 17, 1000, 65537)
STARTS = ((0, 0), (1, 0), (0, 1), (1, 1))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("instruction_set", _C.instruction_sets())
def test_a_pair_equals_the_oracle(
    oracle: types.SimpleNamespace,
    rng: np.random.Generator,
    dtype: str,
    op: str,
    instruction_set: str,
) -> None:
    for count, (to, at) in itertools.product(COUNTS, STARTS):
        dst, src = oracle.make(rng, dtype, count + 2), oracle.make(rng, dtype, count + 2)
        expected = dst.copy()
        expected[to : to + count] = oracle.combine(
            dtype, op, dst[to : to + count], src[at : at + count]
        )
        _C.reduce(dst[to : to + count], src[at : at + count], dtype, op, instruction_set)
        oracle.assert_same(dtype, dst, expected)  # the elements beside the range, too


@pytest.mark.timeout(60)
@pytest.mark.parametrize("instruction_set", _C.instruction_sets())
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_16_bit_float_is_converted(
    oracle: types.SimpleNamespace, dtype: str, instruction_set: str
) -> None:
    every = np.arange(65536, dtype=np.uint16).view(oracle.storage[dtype])
    for rotation in (1, 1021, 30011):  # the sums also meet ties, overflow and cancellation
        other = np.roll(every, rotation)
        for op in ("sum", "prod", "min", "max"):
            dst = every.copy()
            _C.reduce(dst, other, dtype, op, instruction_set)
            oracle.assert_same(dtype, dst, oracle.combine(dtype, op, every, other))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("instruction_set", _C.instruction_sets())
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_a_minimum_does_not_depend_on_who_is_first(
    oracle: types.SimpleNamespace, rng: np.random.Generator, dtype: str, instruction_set: str
) -> None:
    for op in ("min", "max"):
        a, b = oracle.make(rng, dtype, 4099), oracle.make(rng, dtype, 4099)
        forth, back = a.copy(), b.copy()
        _C.reduce(forth, b, dtype, op, instruction_set)
        _C.reduce(back, a, dtype, op, instruction_set)
        oracle.assert_same(dtype, forth, back)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("instruction_set", _C.instruction_sets())
@pytest.mark.parametrize("divisor", [1, 2, 3, 7, 256, 4099])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_divide_rounds_once(
    oracle: types.SimpleNamespace,
    rng: np.random.Generator,
    dtype: str,
    divisor: int,
    instruction_set: str,
) -> None:
    for count in COUNTS:
        data = oracle.make(rng, dtype, count)
        expected = oracle.quotient(dtype, data, divisor)
        _C.divide(data, dtype, divisor, instruction_set)
        oracle.assert_same(dtype, data, expected)


@pytest.mark.timeout(30)
def test_the_best_available_instruction_set_is_used() -> None:
    assert _C.instruction_set() == _C.instruction_sets()[0]
    assert _C.instruction_sets()[-1] == "baseline"
