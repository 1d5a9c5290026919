"""Layouts of ranks on nodes, and inputs, for the tests of groups."""

from collections.abc import Sequence

import numpy as np

from allreduce import _C
from allreduce.communicator.arrays import ArrayView
from allreduce.communicator.communicator import Communicator
from allreduce.errors import Error

# name -> node of each rank; a group of one node uses shared memory only
LAYOUTS = {
    "1x1": [0],
    "1x2": [0] * 2,
    "1x3": [0] * 3,
    "1x4": [0] * 4,
    "2x1": [0, 1],
    "3x1": [0, 1, 2],
    "2x2": [0, 0, 1, 1],
    "2x4": [0] * 4 + [1] * 4,
    "4x2": [0, 0, 1, 1, 2, 2, 3, 3],
    "8x1": list(range(8)),
    "1+2": [0, 1, 1],
    "2+1": [0, 0, 1],
    "3+1+2": [0, 0, 0, 1, 2, 2],
    "4+2": [0] * 4 + [1] * 2,
    "interleaved": [0, 1, 0, 1],
    "scattered": [0, 1, 1, 0, 2],
}
# (layout, local form): each path that a collective may take
SOME_LAYOUTS = (
    ("1x2", "rs_ag"),
    ("1x4", "none"),
    ("2x1", "rs_ag"),
    ("2x2", "rs_ag"),
    ("4x2", "rs_ag"),
)
LOCAL_FORMS = ("rs_ag", "reduce_bcast", "none")
DTYPES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")


def nodes(layout: str) -> list[int]:
    return LAYOUTS[layout]


def size(layout: str) -> int:
    return len(LAYOUTS[layout])


def whole_numbers(dtype: str, op: str, count: int, world_size: int, seed: int = 0) -> list:
    """Inputs of all ranks whose reduction is exact in every order and dtype."""
    rng = np.random.default_rng([seed, count, world_size])
    if dtype == "bool":
        return [rng.random(count) < 0.5 for _ in range(world_size)]
    high = 2 if op == "prod" else 8
    # A mean of multiples of the world size is whole.
    step = world_size if op == "avg" else 1
    return [
        (rng.integers(0, high, count, endpoint=True) * step).astype(dtype)
        for _ in range(world_size)
    ]


def reduced(op: str, inputs: Sequence[np.ndarray]) -> np.ndarray:
    """The exact result, in the inputs' dtype."""
    if inputs[0].dtype == bool:
        table = {"sum": "or", "max": "or", "bor": "or", "prod": "and", "min": "and", "band": "and"}
        ufunc = {"or": np.logical_or, "and": np.logical_and}.get(table.get(op, ""), np.logical_xor)
        return ufunc.reduce(inputs)
    ufunc = {
        "sum": np.add,
        "avg": np.add,
        "min": np.minimum,
        "max": np.maximum,
        "prod": np.multiply,
        "band": np.bitwise_and,
        "bor": np.bitwise_or,
        "bxor": np.bitwise_xor,
    }[op]
    result = ufunc.reduce(inputs, dtype=inputs[0].dtype)
    return result // len(inputs) if op == "avg" else result


def random_floats(dtype: str, count: int, world_size: int, seed: int = 0) -> list[np.ndarray]:
    """Inputs whose sum depends on the order of the additions; bfloat16 as uint16."""
    rng = np.random.default_rng([seed, count, world_size])
    rows = [
        (rng.standard_normal(count) * 10.0 ** rng.integers(-3, 4, count)).astype(np.float32)
        for _ in range(world_size)
    ]
    if dtype == "bfloat16":
        return [(x.view(np.uint32) >> 16).astype(np.uint16) for x in rows]
    return [x.astype(dtype) for x in rows]


def allreduce_as(
    comm: Communicator, x: np.ndarray, dtype: str, op: str = "sum", algo: str = "auto"
) -> np.ndarray:
    """Allreduce an array that stores another dtype, as uint16 stores bfloat16."""
    memory = ArrayView(x.ctypes.data, x.size, dtype, x)
    comm._group.run(**comm._call(_C.Collective.allreduce, memory, op=op, algo=algo))
    return x


def total(comm: Communicator, value: float = 1.0) -> float:
    """The sum of all ranks' values, which is the same in a large array of it."""
    sums = {float(x) for x in comm.allreduce(np.full(70_000, value))}
    assert len(sums) == 1
    return sums.pop()


def until_error(comm: Communicator) -> Error:
    """The error with which calls end, one after the other."""
    try:
        while True:
            total(comm)
    except Error as error:
        return error
