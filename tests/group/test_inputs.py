"""What is passed as an array, call by call: it is worked on where it lies, or refused in words."""

import array
import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from array_calls import IN_PLACE, READS, WORLD_SIZE, refuses
from worlds import run_threads

from allreduce.errors import UsageError


def read_only(x: np.ndarray) -> np.ndarray:
    x.flags.writeable = False
    return x


class Foreign:
    """Somebody else's array."""

    def __init__(self, values: Any) -> None:
        self.values = np.array(values)


class Shares(Foreign):
    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self.values.__array_interface__


class Copies(Foreign):
    """Shows a new copy to everybody who looks."""

    @property
    def __array_interface__(self) -> dict[str, Any]:
        self.shown = self.values.copy()
        return self.shown.__array_interface__


class CopiesByDlpack(Foreign):
    def __dlpack__(self, **_options: object) -> Any:
        return self.values.copy().__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


class HasArrayMethod(Foreign):
    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        return self.values.copy()


SCALARS = [
    *(
        np.float64,
        np.float32,
        np.float16,
        np.int64,
        np.int32,
        np.int16,
        np.int8,
        np.uint8,
        np.bool_,
    ),
    *(np.complex64, np.uint32, np.longdouble),
]
NO_ARRAYS: dict[str, Callable[[], Any]] = {
    "a number": lambda: 3.0,
    "nothing": lambda: None,
    "a list": lambda: [1.0, 2.0],
    "bytes": lambda: b"ab",
    "a bytearray": lambda: bytearray(2),
    "an array.array": lambda: array.array("d", [1, 2]),
    "a memoryview": lambda: memoryview(np.ones(2)),
    "a memoryview of bytes": lambda: memoryview(b"ab"),
    "an array of ctypes": lambda: (ctypes.c_double * 2)(),
    "an object with __array__": lambda: HasArrayMethod([1.0, 2.0]),
    "a dtype": lambda: np.dtype("f4"),
}
REFUSED_EVERYWHERE: dict[str, Callable[[], Any]] = {
    "another byte order": lambda: np.ones(2, np.dtype("f8").newbyteorder()),
    "a scalar of another byte order": lambda: np.array(1, np.dtype("f8").newbyteorder()),
    "strides": lambda: np.ones((2, 4))[:, ::2],
    "objects": lambda: np.ones(2, object),
    "dates": lambda: np.zeros(2, "datetime64[s]"),
    "records": lambda: np.zeros(2, [("a", "f4")]),
    "complex": lambda: np.ones(2, np.complex128),
}
REFUSED_IN_PLACE: dict[str, tuple[Callable[[], Any], str]] = {
    "a read-only array": (lambda: read_only(np.ones(2)), "read-only"),
    "a broadcast scalar": (lambda: np.broadcast_to(np.ones(1), (1,)), "read-only"),
    "a copy of itself": (lambda: Copies([1.0, 2.0]), r"copy of its memory.*np\.array\(x\)"),
    "a copy by DLPack": (lambda: CopiesByDlpack([1.0, 2.0]), r"copy of its memory"),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_a_scalar_of_numpy_cannot_change_in_place(name: str) -> None:
    def body(comm: Any) -> float:
        for kind in SCALARS:
            with pytest.raises(UsageError, match=r"cannot change in place; pass np\.array\(x\)"):
                IN_PLACE[name](comm, kind(1))
        return float(comm.allreduce(np.ones(1))[0])

    assert run_threads(WORLD_SIZE, body) == [float(WORLD_SIZE)] * WORLD_SIZE


def test_a_mean_is_averaged_as_the_error_says() -> None:
    def body(comm: Any) -> list[float]:
        losses = np.array([1.0, 2.0]) + 10 * comm.rank
        with pytest.raises(UsageError):
            comm.allreduce(losses.mean(), op="avg")
        with pytest.raises(UsageError):
            comm.allreduce(losses.sum(dtype=np.float32), op="avg")
        averaged = comm.allreduce(np.array(losses.mean()), op="avg")
        return [float(averaged), float(comm.allgather(losses.mean()).mean())]

    assert run_threads(WORLD_SIZE, body) == [[6.5, 6.5]] * WORLD_SIZE


def test_an_array_without_dimensions_changes_in_place() -> None:
    def body(comm: Any) -> None:
        for dtype in (np.float64, np.float32, np.float16, np.int64, np.int8, np.uint8, np.bool_):
            x = np.array(1, dtype)
            assert comm.allreduce(x) is x
            assert comm.allreduce(x, async_op=True).wait() is x
            assert x == np.array(4).astype(dtype)
            assert comm.broadcast(x, root=1) is x
            x = np.array(1, dtype)
            comm.reduce(x)
            assert x == np.array(2 if comm.rank == 0 else 1).astype(dtype)
            work = comm.isend(x, 1 - comm.rank)
            comm.recv(x, 1 - comm.rank)
            work.wait()
            assert x == np.array(1 if comm.rank == 0 else 2).astype(dtype)
            out = np.array(0, dtype)
            comm.scatter(out, np.arange(WORLD_SIZE).astype(dtype) if comm.rank == 0 else None)
            assert out == np.array(comm.rank).astype(dtype)

    run_threads(WORLD_SIZE, body)


@pytest.mark.parametrize("name", READS)
def test_what_is_only_read_may_be_a_scalar_or_a_copy(name: str) -> None:
    def body(comm: Any) -> None:
        one_row = name in ("reduce_scatter", "alltoall")  # these cut the array
        values = [1.0, 2.0] if one_row else 1.0
        kinds = [read_only(np.array(values)), Shares(values), Copies(values)]
        if not one_row:
            kinds.append(np.float64(1))
        for x in kinds:
            READS[name](comm, x)
            if "send" in name:
                comm.recv(np.array(values), 1 - comm.rank)

    run_threads(WORLD_SIZE, body)


@pytest.mark.parametrize("name", IN_PLACE)
def test_what_shares_its_memory_changes_in_place(name: str) -> None:
    def body(comm: Any) -> None:
        x = Shares([comm.rank + 1.0, comm.rank + 2.0])
        if "recv" in name:
            work = comm.isend(x, 1 - comm.rank)
            x = Shares([0.0, 0.0])
        IN_PLACE[name](comm, x)
        if "recv" in name:
            work.wait()
        want = {
            "broadcast": [[2, 3]] * 2,
            "reduce": [[3, 5], [2, 3]],
            "reduce_scatter in place": [[3, None], [None, 5]],
            "allgather in place": [[1, 3]] * 2,
            "scatter": [[1, 1]] * 2,
            "recv": [[2, 3], [1, 2]],
            "irecv": [[2, 3], [1, 2]],
        }.get(name, [[3, 5]] * 2)
        for found, expected in zip(x.values.tolist(), want[comm.rank], strict=True):
            assert expected is None or found == expected, (x.values, want)

    run_threads(WORLD_SIZE, body)


@pytest.mark.parametrize("name", {**IN_PLACE, **READS})
def test_what_is_no_array_is_refused(name: str) -> None:
    call = {**READS, **IN_PLACE}[name]
    for make in NO_ARRAYS.values():
        refuses(call, make, "is no array; pass a NumPy array")


def test_what_has_a_buffer_is_told_how_to_share_it() -> None:
    for what in ("a bytearray", "an array.array", "a memoryview", "an array of ctypes"):
        refuses(IN_PLACE["allreduce"], NO_ARRAYS[what], r"np\.asarray\(x\) shares the memory")

    def body(comm: Any) -> list[float]:
        x = array.array("d", [1, 2])
        comm.allreduce(np.asarray(x))
        return x.tolist()

    assert run_threads(WORLD_SIZE, body) == [[2.0, 4.0]] * WORLD_SIZE


@pytest.mark.parametrize("name", {**IN_PLACE, **READS})
def test_what_no_call_takes_is_refused_by_every_call(name: str) -> None:
    call = {**READS, **IN_PLACE}[name]
    for make in REFUSED_EVERYWHERE.values():
        refuses(call, make, "")


NOT_ITS_OWN = [
    (name, what)
    for name in IN_PLACE
    for what, (_, words) in REFUSED_IN_PLACE.items()
    if (name, words) != ("reduce", "read-only")  # it changes the root's array alone
]


@pytest.mark.parametrize(("name", "what"), NOT_ITS_OWN)
def test_what_is_not_the_callers_own_is_refused_in_place(name: str, what: str) -> None:
    make, words = REFUSED_IN_PLACE[what]
    refuses(IN_PLACE[name], make, words)
