"""The values by which results are checked: exact in any order, and every mistake is seen."""

from functools import reduce

import numpy as np
import pytest
from arithmetic import FLOATS, STORAGE, combine, quotient

from allreduce.bench import expected_values as values

OPS = ("sum", "avg", "min", "max", "prod", "band", "bor", "bxor")
BITS = ("band", "bor", "bxor")
SUPPORTED = [
    (dtype, op)
    for dtype in STORAGE
    for op in OPS
    if not (op == "avg" and dtype not in FLOATS) and not (op in BITS and dtype in FLOATS)
]


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 40, 300])
@pytest.mark.parametrize(("dtype", "op"), SUPPORTED)
def test_the_result_is_exact_in_any_order(dtype: str, op: str, ranks: int, rng) -> None:
    parts = [values.contribution(op, dtype, rank, ranks, salt=3) for rank in range(ranks)]
    result = values.reduced(op, dtype, ranks, salt=3)
    assert result.dtype == STORAGE[dtype]
    for order in (range(ranks), rng.permutation(ranks)):
        total = reduce(lambda a, b: combine(dtype, op, a, b), (parts[r] for r in order))
        total = quotient(dtype, total, ranks) if op == "avg" else total
        assert np.array_equal(total, result)


@pytest.mark.parametrize("ranks", [2, 7, 40])
@pytest.mark.parametrize(("dtype", "op"), [pair for pair in SUPPORTED if pair[1] != "avg"])
def test_a_lost_contribution_is_seen(dtype: str, op: str, ranks: int) -> None:
    parts = [values.contribution(op, dtype, rank, ranks, salt=0) for rank in range(ranks)]
    result = values.reduced(op, dtype, ranks, salt=0)
    for lost in range(ranks):
        rest = [part for rank, part in enumerate(parts) if rank != lost]
        assert values.count_wrong(reduce(lambda a, b: combine(dtype, op, a, b), rest), result)


@pytest.mark.parametrize("dtype", [dtype for dtype in STORAGE if dtype != "bool"])
def test_a_doubled_contribution_is_seen(dtype: str) -> None:
    result = values.reduced("sum", dtype, 9, salt=0)
    for rank in range(9):
        twice = combine(dtype, "sum", result, values.contribution("sum", dtype, rank, 9, salt=0))
        assert values.count_wrong(twice, result)


@pytest.mark.parametrize("dtype", STORAGE)
def test_data_of_another_rank_or_part_or_call_is_seen(dtype: str) -> None:
    mine = values.moved(dtype, 1, 2, salt=3)
    for source, part, salt in ((2, 1, 3), (0, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert values.count_wrong(values.moved(dtype, source, part, salt), mine)


@pytest.mark.parametrize("chunk", [16, 4096, 65536])
def test_a_chunk_in_the_place_of_another_is_seen(chunk: int) -> None:
    array, pattern = np.empty(4 * chunk, np.float32), values.moved("float32", 0, 0, salt=0)
    values.fill(array, pattern)
    array[:chunk] = array[chunk : 2 * chunk].copy()
    assert values.count_wrong(array, pattern) > chunk // 2


@pytest.mark.parametrize("count", [1, values.PERIOD, 700_001])
def test_every_wrong_element_is_counted(count: int) -> None:
    array, pattern = np.empty(count, np.int8), values.moved("int8", 0, 0, salt=0)
    values.fill(array, pattern)
    assert values.count_wrong(array, pattern) == 0
    places = {0, count // 2, count - 1}
    for place in places:
        array[place] ^= 1
    assert values.count_wrong(array, pattern) == len(places)


def test_a_number_that_is_none_is_wrong() -> None:
    array = np.full(3, np.nan, np.float32)
    assert values.count_wrong(array, np.full(values.PERIOD, np.nan, np.float32)) == 3
