"""What may be passed as an array: NumPy, torch, DLPack; in place, without a copy."""

import numpy as np
import pytest
from worlds import run_threads

from allreduce.communicator.arrays import DTYPES
from allreduce.errors import UsageError

COLLECTIVES = ("allreduce", "broadcast", "reduce", "allgather", "reduce_scatter", "gather")


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch is not installed")


class Exporter:
    """Somebody else's array, known by DLPack alone."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_an_array_of_any_shape_is_reduced_in_place():
    def body(comm):
        for shape in ((), (0,), (3,), (4, 5), (2, 3, 4), (5, 0, 2)):
            x = np.full(shape, comm.rank + 1.0)
            assert comm.allreduce(x) is x
            assert (x == 3).all()

    run_threads(2, body)


def test_a_contiguous_part_of_an_array_is_reduced_alone():
    def body(comm):
        whole = np.ones((10, 4))
        comm.allreduce(whole[3:7])
        return whole.sum(1).tolist()

    assert run_threads(2, body) == [[4.0] * 3 + [8.0] * 4 + [4.0] * 3] * 2


class OldExporter(Exporter):
    """As DLPack was before it had versions."""

    def __dlpack__(self):
        return self.array.__dlpack__()


class Interface:
    def __init__(self, array):
        self.array = array
        self.__array_interface__ = array.__array_interface__


@pytest.mark.parametrize("kind", [Exporter, OldExporter, Interface])
@pytest.mark.parametrize("shape", [(100,), (2, 50)])
def test_an_object_that_shares_its_memory_is_reduced_in_place(kind, shape):
    def body(comm):
        x = kind(np.full(shape, comm.rank + 1.0, np.float32))
        assert comm.allreduce(x) is x
        return float(x.array.sum())

    assert run_threads(2, body) == [300.0] * 2


def test_what_is_only_read_may_be_read_only():
    def body(comm):
        x = np.full(4, comm.rank)
        x.flags.writeable = False
        assert comm.allgather(x).tolist() == [0] * 4 + [1] * 4
        assert comm.reduce_scatter(x).tolist() == [1, 1]
        assert comm.alltoall(x).tolist() == [0, 0, 1, 1]
        if comm.rank == 0:
            comm.send(x, 1)
        else:
            assert comm.recv(np.empty_like(x), 0) == (0, 0)

    run_threads(2, body)


def test_a_read_only_object_with_dlpack_is_refused():
    def body(comm):
        array = np.ones(5)
        array.flags.writeable = False
        with pytest.raises(UsageError, match=f"x on rank {comm.rank}"):
            comm.allreduce(Exporter(array))

    run_threads(2, body)


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_tensors_are_reduced_in_place(torch, dtype):
    def body(comm):
        x = torch.ones(7, 11, dtype=getattr(torch, dtype))
        address = x.data_ptr()
        assert comm.allreduce(x, "sum") is x
        assert x.data_ptr() == address
        work = comm.allreduce(x, "max", async_op=True)
        assert work.wait() is x
        return bool((x == (1 if dtype == "bool" else 4)).all())

    assert run_threads(4, body, nodes=2) == [True] * 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("collective", COLLECTIVES)
def test_torch_tensors_go_through_every_collective_or_are_refused_by_all(torch, collective, dtype):
    def body(comm):
        x = torch.full((4, 2), comm.rank + 1.0, dtype=getattr(torch, dtype))
        try:
            result = getattr(comm, collective)(x)
        except UsageError as error:
            return type(error)
        if result is None:
            return ()
        return [float(v) for v in torch.as_tensor(result).flatten()]

    results = run_threads(2, body, timeout=5.0)
    if UsageError in results:
        assert dtype == "bfloat16"  # NumPy has none to return
        assert results == [UsageError] * 2
        return
    assert (
        results
        == {
            "allreduce": [[3.0] * 8] * 2,
            "broadcast": [[1.0] * 8] * 2,
            "reduce": [[3.0] * 8, [2.0] * 8],
            "allgather": [[1.0] * 8 + [2.0] * 8] * 2,
            "gather": [[1.0] * 8 + [2.0] * 8, ()],
            "reduce_scatter": [[3.0] * 4] * 2,
        }[collective]
    )


def test_a_tensor_that_wants_gradients_is_reduced(torch):
    def body(comm):
        x = torch.ones(5, requires_grad=True)
        comm.allreduce(x)
        return x.detach().tolist()

    assert run_threads(2, body) == [[2.0] * 5] * 2


def test_torch_tensors_that_cannot_be_are_refused(torch):
    def body(comm):
        for x in (
            torch.ones(4, 4).t()[:, :2],
            torch.ones(4, dtype=torch.complex64),
            torch.ones(4, device="meta"),
            torch.ones(4, 4).to_sparse(),
        ):
            with pytest.raises(UsageError):
                comm.allreduce(x)

    run_threads(2, body)
