"""Bad input: one clear typed error, on every rank that is alive, soon; and the process goes on."""

import inspect
import time

import numpy as np
import pytest
from group_cases import SOME_LAYOUTS, nodes, size
from worlds import run_threads

from allreduce import _C, init
from allreduce.communicator.communicator import Communicator
from allreduce.errors import AbortedError, MismatchError, PeerError, Timeout, UsageError
from allreduce.rendezvous.store import MemoryStore

SOON = 8.0  # seconds
every_layout = pytest.mark.parametrize(("layout", "local"), SOME_LAYOUTS)


class OnGpu:
    """Looks like an array of CuPy."""

    __cuda_array_interface__ = {  # noqa: RUF012 - as CuPy has it
        "shape": (4,),
        "typestr": "<f4",
        "data": (4096, False),
        "version": 3,
    }

    def __dlpack__(self, **_options):
        raise BufferError("on a GPU")

    def __dlpack_device__(self):
        return (2, 0)


def read_only() -> np.ndarray:
    x = np.ones(4, np.float32)
    x.flags.writeable = False
    return x


ARRAYS = {
    "not contiguous": (lambda: np.ones((4, 4), np.float32)[:, :2], "not contiguous"),
    "in Fortran's order": (lambda: np.asfortranarray(np.ones((4, 4))), "not contiguous"),
    "backwards": (lambda: np.ones(4)[::-1], "not contiguous"),
    "read-only": (read_only, "read-only"),
    "foreign byte order": (lambda: np.ones(4, ">f4"), "byte order"),
    "complex": (lambda: np.ones(4, np.complex64), "complex64"),
    "objects": (lambda: np.ones(4, object), "object"),
    "text": (lambda: np.array(["a"]), "not supported"),
    "long double": (lambda: np.ones(4, np.longdouble), "not supported"),
    "on a GPU": (OnGpu, "GPU"),
    "a list": (lambda: [1.0, 2.0], "list"),
    "a number": (lambda: 3.0, "float"),
    "nothing": (lambda: None, "NoneType"),
}


# A reduce only reads on all ranks but the root.
REFUSED = [
    (what, collective)
    for what in ARRAYS
    for collective in ("allreduce", "broadcast", "reduce")
    if (what, collective) != ("read-only", "reduce")
]


@pytest.mark.parametrize(("what", "collective"), REFUSED)
def test_an_array_that_cannot_be_is_refused_and_the_group_goes_on(what, collective):
    make, words = ARRAYS[what]

    def body(comm):
        with pytest.raises(UsageError, match=words) as caught:
            getattr(comm, collective)(make())
        assert isinstance(caught.value, ValueError)
        return float(comm.allreduce(np.ones(1))[0])

    assert run_threads(2, body) == [2.0] * 2


def meet_after(call, comm, *arguments) -> None:
    """Who is let through too early hears of an error here."""
    call(*arguments)
    for _ in range(4):
        comm.barrier()


CALLS = {
    "op": ({"op": "mean"}, "unknown operation 'mean'; the operations are sum"),
    "algorithm": ({"algo": "quick"}, "no algorithm 'quick'; it has recursive_doubling"),
    "long algorithm": ({"algo": "x" * 60}, "x"),
    "timeout": ({"timeout": -1.0}, "timeout"),
    "no timeout": ({"timeout": 0.0}, "timeout"),
    "timeout of no number": ({"timeout": float("nan")}, "timeout"),
}


@pytest.mark.parametrize("what", CALLS)
@pytest.mark.parametrize("layout", ["1x1", "1x2", "2x1", "2x2"])
@pytest.mark.parametrize("async_op", [False, True])
def test_an_argument_that_cannot_be_is_refused_and_the_group_goes_on(what, layout, async_op):
    arguments, words = CALLS[what]

    def body(comm):
        with pytest.raises(UsageError, match=words):
            comm.allreduce(np.ones(4, np.float32), async_op=async_op, **arguments)
        return float(comm.allreduce(np.ones(1))[0])

    assert run_threads(size(layout), body, nodes=nodes(layout)) == [float(size(layout))] * size(
        layout
    )


@pytest.mark.parametrize(
    ("dtype", "op"), [("int32", "avg"), ("bool", "avg"), ("float32", "band"), ("float64", "bxor")]
)
def test_an_operation_without_a_meaning_is_refused(dtype, op):
    def body(comm):
        with pytest.raises(UsageError, match=f"op '{op}' on dtype {dtype}"):
            comm.allreduce(np.ones(4, dtype), op)

    run_threads(2, body)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"op": 0}, "op on rank [01]: must be a string, not 0"),  # reduce(x, 0) means root=0
        ({"algo": None}, "algo on rank [01]: must be a string, not None"),
        ({"root": "0"}, "root on rank [01]: must be a rank, not '0'"),
        ({"root": 0.0}, r"root on rank [01]: must be a rank, not 0\.0"),
        ({"timeout": "5"}, "timeout='5': must be a positive number"),
        ({"timeout": float("nan")}, "timeout=nan: must be a positive number"),
    ],
)
def test_an_argument_of_another_type_is_refused_by_name(arguments, message):
    def body(comm):
        with pytest.raises(UsageError, match=message):
            comm.reduce(np.ones(4), **arguments)

    run_threads(2, body)


@pytest.mark.parametrize("root", [-1, 2, 100])
@pytest.mark.parametrize("collective", ["broadcast", "reduce", "gather"])
def test_a_root_outside_the_group_is_refused(collective, root):
    def body(comm):
        with pytest.raises(UsageError, match=f"root {root} is outside this group of 2 ranks"):
            getattr(comm, collective)(np.ones(4), root=root)
        return float(comm.allreduce(np.ones(1))[0])

    assert run_threads(2, body) == [2.0] * 2


def test_rows_that_do_not_split_are_refused():
    def body(comm):
        with pytest.raises(UsageError, match="does not split over 2 ranks"):
            comm.reduce_scatter(np.ones((3, 2)))

    run_threads(2, body)


@pytest.mark.parametrize(
    "options",
    [
        {"local": "magic"},
        {"rails": -1},
        {"lanes": 0},
        {"lanes": 1000},
        {"segment_bytes": 0},
        {"timeout": 0.0},
        {"timeout": float("nan")},
        {"generation": -1},
        {"generation": 1 << 16},
        {"nodes": 3},
        {"nodes": 0},
        {"nodes": [0, 0]},
        {"nodes": "two"},
    ],
    ids=str,
)
def test_an_option_that_cannot_be_is_refused_before_anybody_connects(options):
    name = next(iter(options))
    with pytest.raises(UsageError, match=name):
        Communicator.from_store(MemoryStore(1.0), 0, 1, measure=False, **options)


@every_layout
def test_a_rank_that_never_calls_is_named_when_the_time_is_over(layout, local):
    p = size(layout)

    def body(comm):
        if comm.rank == 1:
            time.sleep(1.5)  # too late
        begin = time.monotonic()
        try:
            comm.allreduce(np.ones(1000), timeout=0.6)
            comm.barrier()  # what the others gave before may suffice for the late one
        finally:
            assert time.monotonic() - begin < SOON

    errors = run_threads(p, body, nodes=nodes(layout), local=local, errors=True)
    assert [type(e) for e in errors] == [Timeout] * p, errors
    for error in errors:
        assert "no sign that rank 1 entered it" in str(error)
        assert "timed out after 0.6 s" in str(error)
    assert all(isinstance(error, TimeoutError) for error in errors)


@every_layout
def test_a_rank_that_leaves_is_named(layout, local):
    p = size(layout)

    def body(comm):
        comm.barrier()
        if comm.rank == 1:
            return
        for _ in range(3):
            comm.allreduce(np.ones(50_000))

    errors = run_threads(p, body, nodes=nodes(layout), local=local, errors=True)
    for rank, error in enumerate(errors):
        if rank != 1:
            assert isinstance(error, PeerError), errors
            assert error.rank == 1, errors
            assert "rank 1" in str(error)
    assert errors[1] is None


@every_layout
def test_a_failed_group_stays_so_and_a_new_one_works(layout, local):
    p, store = size(layout), MemoryStore(20.0)

    def fail(comm):
        with pytest.raises(MismatchError):
            meet_after(comm.allreduce, comm, np.ones(100 + (comm.rank == 1)))
        for call in (comm.barrier, lambda: comm.allreduce(np.ones(3))):
            with pytest.raises(AbortedError, match=r"make a new one\): ranks disagree"):
                call()
        comm.close()
        with pytest.raises(AbortedError):
            comm.barrier()

    def work(comm):
        return float(comm.allreduce(np.full(1000, 2.0))[999])

    where = {"nodes": nodes(layout), "local": local, "store": store}
    run_threads(p, fail, **where)
    for generation in (0, 1):  # the failed one has left nothing in the store
        assert run_threads(p, work, generation=generation, **where) == [2.0 * p] * p


@pytest.mark.parametrize("layout", ["1x1", "1x2", "2x1"])
def test_a_closed_group_refuses_every_call(layout):
    def body(comm):
        comm.close()
        comm.close()
        for call in (
            comm.barrier,
            lambda: comm.allreduce(np.ones(3)),
            lambda: comm.allreduce(np.ones(3), async_op=True),
            lambda: comm.allgather(np.ones(3)),
            lambda: comm.split(0),
        ):
            with pytest.raises(AbortedError, match="make a new one"):
                call()

    run_threads(size(layout), body, nodes=nodes(layout))


def test_an_aborted_group_says_why_everywhere():
    def body(comm):
        if comm.rank == 2:
            comm.abort("the disk is full")
        with pytest.raises(AbortedError, match="the disk is full"):
            meet_after(comm.allreduce, comm, np.ones(1000))

    run_threads(4, body, nodes=2)


def test_an_error_without_end_is_cut_not_lost():
    def body(comm):
        if comm.rank == 1:
            comm.abort("x" * 5000)
        with pytest.raises(AbortedError, match="x" * 800):
            comm.barrier()

    run_threads(2, body)


def test_a_schedule_of_ones_own_must_keep_its_promise():
    def body(comm):
        nothing = _C.Schedule.from_moves(2, 1, np.zeros((0, 6), np.int32))
        with pytest.raises(UsageError, match="is no allreduce"):
            comm._group.add_schedule("mine", _C.Collective.allreduce, nothing)

    run_threads(2, body)


def test_init_takes_what_from_store_takes() -> None:
    ours = inspect.signature(init).parameters
    theirs = inspect.signature(Communicator.from_store).parameters
    for name in theirs.keys() - {"store", "rank", "world_size"}:
        assert ours[name].default == theirs[name].default, name


def test_an_argument_that_init_has_not_is_its_own_error() -> None:
    with pytest.raises(TypeError, match=r"^init\(\) got an unexpected keyword argument 'nonsense'"):
        init(nonsense=3)


@pytest.mark.parametrize(("name", "here"), [("size", "world_size"), ("all_reduce", "allreduce")])
def test_the_words_of_other_libraries_are_explained(name: str, here: str) -> None:
    with init() as comm, pytest.raises(AttributeError, match=f"it is called {here} here"):
        getattr(comm, name)
