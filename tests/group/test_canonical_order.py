"""The same input gives the same bits: in any layout, on every rank, in every run."""

import numpy as np
import pytest
from arithmetic import combine
from group_cases import LAYOUTS, allreduce_as, nodes, random_floats, size
from worlds import run_threads

from allreduce.schedules import algorithms

CANONICAL = ("halving_doubling", "recursive_doubling")
OF_EIGHT = {"1x8": [0] * 8, "2x4": LAYOUTS["2x4"], "4x2": LAYOUTS["4x2"], "8x1": LAYOUTS["8x1"]}
COUNTS = (1, 37, 4099, 200_003)  # one-shot, one rail, several rails and pieces


def bits(layout: list[int], dtype: str, algo: str, *, counts=COUNTS, seed=0, **options) -> list:
    """Per rank, the results for all counts as bytes."""
    p = len(layout)
    inputs = [random_floats(dtype, count, p, seed) for count in counts]

    def body(comm):
        return [allreduce_as(comm, row[comm.rank].copy(), dtype, "sum", algo) for row in inputs]

    return [
        [result.tobytes() for result in results]
        for results in run_threads(p, body, nodes=layout, **options)
    ]


def tree(dtype: str, rows: list[np.ndarray]) -> np.ndarray:
    """tree(p) = tree(largest power of two < p, or its half) + tree(the rest)."""
    if len(rows) == 1:
        return rows[0]
    half = 1 << ((len(rows) - 1).bit_length() - 1)
    return combine(dtype, "sum", tree(dtype, rows[:half]), tree(dtype, rows[half:]))


def canonical(dtype: str, p: int, counts=COUNTS, seed=0) -> list[bytes]:
    return [tree(dtype, random_floats(dtype, count, p, seed)).tobytes() for count in counts]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("algo", CANONICAL)
@pytest.mark.parametrize("local", ["rs_ag", "reduce_bcast", "none"])
@pytest.mark.parametrize("layout", OF_EIGHT)
def test_eight_ranks_add_along_one_tree_in_every_layout(layout, local, algo, dtype):
    want = canonical(dtype, 8)
    assert bits(OF_EIGHT[layout], dtype, algo, local=local) == [want] * 8


def test_the_order_matters_to_these_inputs():
    rows = random_floats("float32", 4099, 8)
    in_line = rows[0]
    for row in rows[1:]:
        in_line = in_line + row
    assert (in_line != tree("float32", rows)).mean() > 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("algo", CANONICAL)
@pytest.mark.parametrize("p", [2, 3, 5, 6, 7])
@pytest.mark.parametrize("layout", ["one node", "a node each", "one node, no hierarchy"])
def test_flat_groups_of_any_size_add_along_the_tree(layout, p, algo, dtype):
    where = list(range(p)) if layout == "a node each" else [0] * p
    local = "none" if "no hierarchy" in layout else "rs_ag"
    counts = COUNTS[:3]
    want = canonical(dtype, p, counts)
    assert bits(where, dtype, algo, counts=counts, local=local) == [want] * p


@pytest.mark.parametrize("rails", [1, 2, 3, 4])
def test_rails_do_not_change_the_bits(rails):
    want = canonical("float32", 8)
    assert bits(OF_EIGHT["2x4"], "float32", "halving_doubling", rails=rails) == [want] * 8


@pytest.mark.parametrize("segment_bytes", [64, 1000, 1 << 20])
@pytest.mark.parametrize("lanes", [1, 3])
def test_segments_and_lanes_do_not_change_the_bits(segment_bytes, lanes):
    result = bits(
        OF_EIGHT["4x2"], "float32", "halving_doubling", segment_bytes=segment_bytes, lanes=lanes
    )
    assert result == [canonical("float32", 8)] * 8


@pytest.mark.parametrize("algo", CANONICAL)
@pytest.mark.parametrize("layout", ["1x8", "2x4", "4x2"])
def test_symmetric_memory_does_not_change_the_bits(layout, algo):
    counts = (*COUNTS[2:], 600_011)
    inputs = [random_floats("float32", count, 8) for count in counts]

    def body(comm):
        results = []
        for row in inputs:
            x = comm.symmetric_empty(row[0].size)
            x[:] = row[comm.rank]
            comm.allreduce(x, algo=algo)
            results.append(x.tobytes())
        return results

    want = canonical("float32", 8, counts)
    assert run_threads(8, body, nodes=OF_EIGHT[layout]) == [want] * 8


@pytest.mark.parametrize("layout", ["1x3", "3x1", "2x2", "4x2", "3+1+2", "interleaved"])
@pytest.mark.parametrize("algo", algorithms("allreduce"))
def test_every_algorithm_gives_all_ranks_the_same_bits_in_every_run(algo, layout):
    counts = COUNTS[:3]
    first = bits(nodes(layout), "float32", algo, counts=counts)
    assert first == [first[0]] * size(layout)
    assert bits(nodes(layout), "float32", algo, counts=counts) == first
