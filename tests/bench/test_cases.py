"""What a benchmark calls and checks, for each collective."""

from typing import Any

import numpy as np
import pytest
from worlds import run_threads

from allreduce import Communicator
from allreduce.bench.cases import KINDS, Case, nbytes_of

RANKS = 3
NBYTES = 3000
ROOT = 1
WITH_RESULT = {"reduce": [ROOT], "gather": [ROOT]}  # the others: all ranks


def case_of(comm: Communicator, collective: str, dtype: str = "float32", **changes: Any) -> Case:
    size = nbytes_of(collective, NBYTES, dtype, comm.world_size)
    buffer, source = np.empty((2, size), np.uint8)
    options = {
        "nbytes": NBYTES,
        "dtype": dtype,
        "op": "sum",
        "root": ROOT,
        "algorithm": "auto",
        "buffer": buffer,
        "input": source,
    }
    return Case(comm, collective, **{**options, **changes})


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool"])
@pytest.mark.parametrize("collective", KINDS)
def test_the_right_result_is_right(collective: str, dtype: str, nodes: int) -> None:
    def body(comm: Communicator) -> list[int]:
        case, wrong = case_of(comm, collective, dtype), []
        for salt in range(2):
            case.prepare(salt)
            case.call()
            wrong.append(case.count_wrong(salt))
        return wrong

    assert run_threads(RANKS, body, nodes=nodes) == [[0, 0]] * RANKS


@pytest.mark.parametrize("collective", KINDS)
def test_without_the_call_it_is_wrong(collective: str) -> None:
    def body(comm: Communicator) -> int:
        case = case_of(comm, collective)
        case.prepare(0)
        return case.count_wrong(0)

    wrong = run_threads(RANKS, body)
    moves_nothing = {"broadcast": [ROOT], "scatter": [ROOT]}.get(collective, [])
    for rank in set(WITH_RESULT.get(collective, range(RANKS))) - set(moves_nothing):
        assert wrong[rank] > 200


@pytest.mark.parametrize("collective", KINDS)
def test_one_wrong_element_is_counted(collective: str) -> None:
    def body(comm: Communicator) -> int:
        part = nbytes_of(collective, NBYTES, "float32", RANKS) // RANKS
        buffer, source = np.empty((2, RANKS * part), np.uint8)
        case = case_of(comm, collective, buffer=buffer, input=source)
        case.prepare(0)
        case.call()
        buffer[comm.rank * part] ^= 1  # in the own part, which every result holds
        return case.count_wrong(0)

    wrong = run_threads(RANKS, body)
    having = WITH_RESULT.get(collective, range(RANKS))
    assert wrong == [int(rank in having) for rank in range(RANKS)]


@pytest.mark.parametrize(
    ("collective", "factor"),  # busbw / algbw of 4 ranks, by nccl-tests' doc/PERFORMANCE.md
    [
        ("allreduce", 6 / 4),
        ("reduce_scatter", 3 / 4),
        ("allgather", 3 / 4),
        ("broadcast", 1),
        ("reduce", 1),
        ("gather", 3 / 4),
        ("scatter", 3 / 4),
        ("alltoall", 3 / 4),
        ("sendrecv", 1),
    ],
)
def test_busbw_is_as_in_nccl_tests(collective: str, factor: float) -> None:
    assert KINDS[collective].factor(4) == factor


@pytest.mark.parametrize(
    ("collective", "nbytes", "size"),
    [
        ("allreduce", 1, 4),
        ("allreduce", 1023, 1020),
        ("allgather", 1, 12),
        ("alltoall", 1024, 1020),
    ],
)
def test_sizes_are_of_whole_elements_on_each_rank(collective: str, nbytes: int, size: int) -> None:
    assert nbytes_of(collective, nbytes, "float32", 3) == size
