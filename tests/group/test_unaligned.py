"""Arrays whose address is no multiple of the element's size: right in every call, on every path."""

import numpy as np
import pytest
from group_cases import nodes, reduced, size, whole_numbers
from worlds import run_threads

from allreduce.communicator.arrays import DTYPES

COUNT = 5003  # more than the 16 KiB from which on kernels align their stores
# What sums where: each rank's buffer itself (flat), or slots in shared memory.
PATHS = [
    ("2x1", "rs_ag"),
    ("1x2", "none"),
    ("3x1", "rs_ag"),
    ("1x2", "rs_ag"),
    ("1x3", "rs_ag"),
    ("2x2", "rs_ag"),
    ("2x2", "none"),
]
ALGORITHMS = ("auto", "ring", "halving_doubling", "recursive_doubling")


def unaligned(values: np.ndarray, offset: int) -> np.ndarray:
    """A copy that begins `offset` bytes behind a multiple of 64."""
    raw = np.zeros(values.nbytes + 128, np.uint8)
    begin = -raw.ctypes.data % 64 + offset
    array = raw[begin : begin + values.nbytes].view(values.dtype).reshape(values.shape)
    array[...] = values
    assert array.ctypes.data % 64 == offset
    return array


def sums(comm, dtype: str, make, read) -> None:
    """Every call that reduces, at every offset."""
    inputs = whole_numbers(dtype, "sum", COUNT * comm.world_size, comm.world_size)
    want, mine = reduced("sum", inputs), inputs[comm.rank]
    part = slice(COUNT * comm.rank, COUNT * (comm.rank + 1))
    for offset in range(1, 8):
        x = make(mine, offset)
        assert comm.allreduce(x, "sum", ALGORITHMS[offset % len(ALGORITHMS)]) is x
        assert np.array_equal(read(x), want), (dtype, offset)
        x = make(mine, offset)
        assert comm.allreduce(x, "sum", async_op=True).wait() is x
        assert np.array_equal(read(x), want), (dtype, offset, "async")
        x = make(mine, offset)
        comm.reduce(x, "sum", root=comm.world_size - 1)
        whole = want if comm.rank == comm.world_size - 1 else mine
        assert np.array_equal(read(x), whole), (dtype, offset, "reduce")
        x = make(mine, offset)
        assert np.array_equal(read(comm.reduce_scatter(x, "sum")), want[part]), (dtype, offset)
        assert np.array_equal(read(comm.reduce_scatter(x, "sum", in_place=True)), want[part])


def moves(comm, dtype: str, make, read) -> None:
    """Every call that only moves."""
    p, rank = comm.world_size, comm.rank
    inputs = whole_numbers(dtype, "sum", COUNT * p, p)
    mine, part = inputs[rank], slice(COUNT * rank, COUNT * (rank + 1))
    for offset in range(1, 8):
        assert np.array_equal(read(comm.broadcast(make(mine, offset), root=1)), inputs[1])
        assert np.array_equal(read(comm.allgather(make(mine, offset))), np.concatenate(inputs))
        x = make(mine, offset)
        comm.allgather(x, in_place=True)
        rows = [inputs[r][COUNT * r : COUNT * (r + 1)] for r in range(p)]
        assert np.array_equal(read(x), np.concatenate(rows))
        found = comm.gather(make(mine, offset), root=0)
        assert rank or np.array_equal(read(found), np.concatenate(inputs))
        out = make(mine[part], offset)
        comm.scatter(out, make(inputs[0], offset) if rank == 0 else None)
        assert np.array_equal(read(out), inputs[0][part])
        found = read(comm.alltoall(make(mine, offset)))
        assert np.array_equal(found, np.concatenate([x[part] for x in inputs]))
        work = comm.isend(make(mine, offset), (rank + 1) % p)
        x = make(np.zeros_like(mine), offset)
        comm.recv(x, (rank - 1) % p)
        work.wait()
        assert np.array_equal(read(x), inputs[(rank - 1) % p])


def every_numpy_dtype(comm, check) -> None:
    for dtype in DTYPES:
        if dtype != "bfloat16":
            check(comm, dtype, unaligned, np.asarray)


@pytest.mark.parametrize("check", [sums, moves], ids=["sums", "moves"])
@pytest.mark.parametrize(("layout", "local"), PATHS)
def test_arrays_of_numpy(layout, local, check):
    run_threads(
        size(layout), lambda comm: every_numpy_dtype(comm, check), nodes=nodes(layout), local=local
    )


@pytest.mark.parametrize("check", [sums, moves], ids=["sums", "moves"])
@pytest.mark.parametrize(("layout", "local"), PATHS)
def test_tensors_of_torch(layout, local, check):
    torch = pytest.importorskip("torch", reason="torch is not installed")

    def make(values, offset):
        # What NumPy has no dtype for is made of whole numbers.
        exact = torch.from_numpy(values.copy()).to(kind)
        raw = torch.zeros(exact.nbytes + 128, dtype=torch.uint8)
        begin = -raw.data_ptr() % 64 + offset
        tensor = torch.frombuffer(raw.numpy(), dtype=kind, count=exact.numel(), offset=begin)
        tensor = tensor.view(exact.shape).copy_(exact)
        assert tensor.data_ptr() % 64 == offset
        return tensor

    for dtype in DTYPES:
        kind = getattr(torch, dtype)
        read = lambda x: x.to(torch.float32 if dtype == "bfloat16" else x.dtype).numpy()  # noqa: B023, E731
        as_numpy = "float32" if dtype == "bfloat16" else dtype
        run_threads(
            size(layout),
            lambda comm, name=as_numpy: check(comm, name, make, read),  # noqa: B023
            nodes=nodes(layout),
            local=local,
        )


class Exporter:
    """Somebody else's array, known by DLPack alone."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class Interface:
    def __init__(self, array):
        self.array = array
        self.__array_interface__ = array.__array_interface__


@pytest.mark.parametrize("kind", [Exporter, Interface])
@pytest.mark.parametrize("layout", ["2x1", "1x2"])
def test_arrays_of_others(layout, kind):
    def body(comm):
        for offset in range(1, 8):
            x = kind(unaligned(np.arange(COUNT) + comm.rank, offset))
            assert comm.allreduce(x) is x
            assert np.array_equal(x.array, 2 * np.arange(COUNT) + 1)

    run_threads(size(layout), body, nodes=nodes(layout))


def test_symmetric_memory():
    """A part of it that is not aligned is no place that all ranks know: it is copied."""

    def body(comm):
        memory = comm.symmetric_empty(8 * COUNT + 8, "uint8")
        for offset in range(1, 8):
            x = memory[offset : offset + 8 * COUNT].view(np.float64)
            x[...] = np.arange(COUNT) + comm.rank
            comm.barrier()
            comm.allreduce(x)
            assert np.array_equal(x, 2 * np.arange(COUNT) + 1)

    run_threads(2, body)
