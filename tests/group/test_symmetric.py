"""Symmetric memory: all ranks of a node map it, nothing is copied, and all mean the same place."""

import gc

import numpy as np
import pytest
from group_cases import nodes, size
from worlds import run_threads

from allreduce.errors import Error, MismatchError, SystemCallError, UsageError


@pytest.mark.parametrize("layout", ["1x1", "1x2", "2x1", "2x2"])
def test_it_is_zero_aligned_and_of_the_shape_that_was_asked_for(layout):
    def body(comm):
        for shape in (1, 7, (), (0,), (3, 5), (2, 3, 4)):
            for dtype in ("float32", "float64", "int8", "bool"):
                x = comm.symmetric_empty(shape, dtype)
                assert x.shape == ((shape,) if isinstance(shape, int) else shape)
                assert x.dtype == dtype
                assert not x.any()
                assert x.ctypes.data % 64 == 0
                assert x.flags.writeable

    run_threads(size(layout), body, nodes=nodes(layout))


@pytest.mark.parametrize("layout", ["1x4", "2x2"])
def test_a_rank_writes_into_its_own_part_only(layout):
    def body(comm):
        x = comm.symmetric_empty(1000)
        x[:] = comm.rank + 1
        comm.barrier()
        assert (x == comm.rank + 1).all()
        comm.barrier()

    run_threads(size(layout), body, nodes=nodes(layout))


def test_it_outlives_other_names_for_it():
    def body(comm):
        whole = comm.symmetric_empty((4, 1000))
        part = whole[2]
        del whole
        gc.collect()
        part[:] = 1
        work = comm.allreduce(part, async_op=True)
        del part
        gc.collect()
        return float(work.wait().sum())

    assert run_threads(2, body) == [2000.0] * 2


def test_it_may_come_and_go():
    def body(comm):
        for i in range(20):
            x = comm.symmetric_empty(5000 + i)
            x[:] = comm.rank
            comm.allreduce(x)
            assert (x == 1).all()
            if comm.rank == i % 2:
                del x  # while the other still has its own

    run_threads(2, body)


def test_what_was_freed_is_looked_for_in_no_call():
    def body(comm):
        kept = comm.symmetric_empty(100)
        for _ in range(200):
            comm.symmetric_empty(100)
        assert comm._group.known_symmetric <= 3
        kept[:] = 1
        assert (comm.allreduce(kept) == 2).all()

    run_threads(2, body)


def test_ranks_that_free_at_different_times_mean_one_place():
    def body(comm):
        arrays = [comm.symmetric_empty(100) for _ in range(6)]
        del arrays[comm.rank : comm.rank + 2]
        last = comm.symmetric_empty(100)
        for x in (arrays[-1], last):
            x[:] = 1
            assert (comm.allreduce(x) == 2).all()

    run_threads(2, body)


@pytest.mark.parametrize("layout", ["1x2", "2x2", "3+1+2"])
@pytest.mark.parametrize("least", [0, 1])
def test_shapes_that_differ_never_give_wrong_numbers(layout, least):
    def body(comm):
        x = comm.symmetric_empty(2000 if (comm.rank == 0) == (least == 0) else 4000)
        x[:] = 1
        for _ in range(2):
            comm.allreduce(x[:1000], "max")
            assert (x[:1000] == 1).all()
        comm.barrier()

    errors = run_threads(size(layout), body, nodes=nodes(layout), errors=True, timeout=10.0)
    assert all(isinstance(error, Error) for error in errors), errors
    assert any(isinstance(error, (MismatchError, UsageError)) for error in errors), errors


@pytest.mark.parametrize("shape", [-5, (2, -3), (-2, -3)])
def test_a_negative_shape_is_refused(shape):
    def body(comm):
        with pytest.raises(UsageError, match="shape"):
            comm.symmetric_empty(shape)
        return float(comm.allreduce(np.ones(1))[0])

    assert run_threads(2, body) == [2.0] * 2


def test_more_memory_than_there_is_is_an_error_on_every_rank():
    def body(comm):
        comm.symmetric_empty(1 << 48)

    errors = run_threads(2, body, errors=True, timeout=10.0)
    assert isinstance(errors[0], SystemCallError)
    assert all(isinstance(error, Error) for error in errors), errors
