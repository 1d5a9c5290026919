"""How messages end otherwise: mismatches, bad arguments, deadlines, aborts, closing."""

import threading
import time

import numpy as np
import pytest
from group_cases import nodes, size
from worlds import run_threads

from allreduce.errors import AbortedError, MismatchError, PeerError, Timeout, UsageError

SOON = 8.0  # seconds
LIMIT = 128 << 10  # bytes; larger messages are announced
PAIRS = ("1x2", "2x1")
LAYOUTS = (*PAIRS, "1x3", "2x2", "2+1")

# What rank 0 sends, what rank 1 receives it as, and how the error calls the two.
DISAGREEMENTS = {
    "size": ((5, "float32"), (7, "float32"), "float32[5]", "float32[7]"),
    "nothing for something": ((0, "int64"), (3, "int64"), "int64[0]", "int64[3]"),
    "something for nothing": ((3, "int64"), (0, "int64"), "int64[3]", "int64[0]"),
    "dtype": ((8, "float32"), (8, "int32"), "float32[8]", "int32[8]"),
    "large for small": ((LIMIT, "int32"), (5, "int32"), f"int32[{LIMIT}]", "int32[5]"),
    "small for large": ((5, "int32"), (LIMIT, "int32"), "int32[5]", f"int32[{LIMIT}]"),
    "dtype of a large one": ((LIMIT, "int64"), (LIMIT, "float64"), "int64[", "float64["),
}


@pytest.mark.parametrize("what", DISAGREEMENTS)
@pytest.mark.parametrize("first", ["sender", "receiver"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_ends_that_disagree_hear_what_both_gave(layout, first, what):
    sends, receives, *words = DISAGREEMENTS[what]
    posted = threading.Event()

    def body(comm):
        late = (comm.rank == 0) == (first == "receiver")
        if late and comm.rank < 2:
            assert posted.wait(10)
        if comm.rank == 0:
            work = comm.isend(np.zeros(*sends), 1, tag=4)
        elif comm.rank == 1:
            work = comm.irecv(np.zeros(*receives), 0, tag=4)
        if comm.rank < 2 and not late:
            posted.set()
        if comm.rank < 2:
            work.wait()  # what is sent at once ends well
        comm.barrier()
        comm.barrier()

    begin = time.monotonic()
    errors = run_threads(size(layout), body, errors=True, timeout=20.0, nodes=nodes(layout))
    assert time.monotonic() - begin < SOON
    for rank, error in enumerate(errors):
        assert isinstance(error, MismatchError), (rank, errors)
        assert f"rank 0 sends {words[0]}" in str(error)
        assert f"rank 1 receives it as {words[1]}" in str(error)
        assert "tag 4" in str(error)


def read_only() -> np.ndarray:
    x = np.ones(3)
    x.flags.writeable = False
    return x


X = np.ones(3)
BAD = {
    "to itself": (lambda comm: comm.send(X, comm.rank), "send: rank . cannot exchange.* itself"),
    "from itself": (lambda comm: comm.recv(X, comm.rank), "recv: rank . cannot exchange.* itself"),
    "to nobody": (lambda comm: comm.send(X, 2), "send: rank 2 is outside this group of 2 ranks"),
    "from nobody": (lambda comm: comm.recv(X, 7), "recv: rank 7 is outside this group of 2 ranks"),
    "to any": (lambda comm: comm.send(X, None), "dest=None"),
    "to a negative": (lambda comm: comm.isend(X, -1), "dest=-1: must be a whole number, 0 or more"),
    "from a negative": (lambda comm: comm.recv(X, -1), "source=-1: .* or None for any"),
    "tag to send": (lambda comm: comm.send(X, 1 - comm.rank, -1), "tag=-1: must be"),
    "tag to receive": (lambda comm: comm.irecv(X, 1 - comm.rank, -1), "tag=-1: .* None for any"),
    "large tag": (lambda comm: comm.send(X, 1 - comm.rank, 1 << 31), "tag=2147483648"),
    "a tag that is no number": (lambda comm: comm.recv(X, 0, "x"), "tag='x'"),
    "a rank that is no number": (lambda comm: comm.send(X, 0.5), "dest=0.5"),
    "send any tag": (lambda comm: comm.send(X, 1 - comm.rank, None), "tag=None"),
    "read-only": (lambda comm: comm.recv(read_only(), 1 - comm.rank), "x on rank .: is read-only"),
    "no array": (lambda comm: comm.send([1.0], 1 - comm.rank), "x on rank .: a list is no array"),
    "strided": (
        lambda comm: comm.send(np.ones(6)[::2], 1 - comm.rank),
        "x on rank .: .*contiguous",
    ),
    "timeout": (lambda comm: comm.send(X, 1 - comm.rank, timeout=0), "timeout=0"),
}


@pytest.mark.parametrize("what", BAD)
def test_an_argument_that_cannot_be_is_refused_and_the_group_goes_on(what):
    call, words = BAD[what]

    def body(comm):
        with pytest.raises(UsageError, match=words):
            call(comm)
        work = comm.isend(np.full(1, comm.rank), 1 - comm.rank)
        x = np.empty(1, np.int64)
        comm.recv(x, 1 - comm.rank)
        work.wait()
        return x.item()

    assert run_threads(2, body) == [1, 0]


def test_one_rank_has_nobody_to_talk_to():
    def body(comm):
        for call in (comm.send, comm.isend, comm.recv, comm.irecv):
            with pytest.raises(UsageError, match="itself"):
                call(np.ones(1), 0)
        with pytest.raises(UsageError, match="itself"):
            comm.recv(np.ones(1))

    run_threads(1, body)


RECEIVES = {
    "tag": ({"source": 1, "tag": 5}, "from rank 1, tag 5", "but tag 7 from rank 1"),
    "any source": ({"source": None, "tag": 5}, "from any rank, tag 5", "but tag 7 from rank 1"),
    "source": ({"source": 2, "tag": None}, "from rank 2, any tag", "no such message has come."),
}


@pytest.mark.parametrize("nbytes", [24, 2 * LIMIT])
@pytest.mark.parametrize("what", RECEIVES)
@pytest.mark.parametrize("layout", ["1x3", "3x1", "2+1"])
def test_a_receive_that_times_out_tells_what_came_instead(layout, what, nbytes):
    arguments, *words = RECEIVES[what]
    ready = threading.Event()

    def body(comm):
        if comm.rank == 1:
            work = comm.isend(np.ones(nbytes // 8), 0, tag=7)
            ready.set()
            work.wait()
        elif comm.rank == 0:
            assert ready.wait(10)
            comm.recv(np.ones(3), **arguments, timeout=0.4)
        comm.barrier()

    errors = run_threads(3, body, errors=True, timeout=20.0, nodes=nodes(layout))
    for error in errors:
        assert isinstance(error, Timeout), errors
        for word in ("recv(float64[3])", *words, "timed out after 0.4 s on rank 0"):
            assert word in str(error), error


def test_many_that_came_instead_are_not_all_told():
    def body(comm):
        for tag in range(300):
            comm.isend(np.ones(1), 1 - comm.rank, tag)
        comm.recv(np.ones(1), 1 - comm.rank, 1000, timeout=0.3)

    for error in run_threads(2, body, errors=True):
        assert isinstance(error, Timeout)
        assert "tag 0 from rank" in str(error)
        assert len(str(error)) < 600


@pytest.mark.parametrize("layout", PAIRS)
@pytest.mark.parametrize("blocking", [False, True])
def test_a_send_that_nobody_receives_times_out(layout, blocking):
    over = threading.Event()

    def body(comm):
        x = np.zeros(LIMIT)
        if comm.rank == 1:
            assert over.wait(20)
        try:
            if blocking:
                comm.send(x, 1 - comm.rank, 3, timeout=0.4)
            else:
                comm.isend(x, 1 - comm.rank, 3, timeout=0.4).wait()
        finally:
            over.set()

    errors = run_threads(2, body, errors=True, timeout=20.0, nodes=nodes(layout))
    assert [type(error) for error in errors] in ([Timeout] * 2, [Timeout, AbortedError]), errors
    for error in errors:
        assert f"send(float64[{LIMIT}]) to rank 1, tag 3 timed out after 0.4 s" in str(error)
        assert "nobody has received it" in str(error)


@pytest.mark.parametrize("ending", ["closed", "aborted", "failed"])
@pytest.mark.parametrize("layout", PAIRS)
def test_a_group_that_has_ended_takes_no_messages(layout, ending):
    def body(comm):
        if ending == "closed":
            comm.close()
        elif ending == "aborted":
            comm.abort("for a test")
        else:
            with pytest.raises(MismatchError):
                comm.allreduce(np.ones(3 + comm.rank))
        for call in (comm.send, comm.isend, comm.recv, comm.irecv):
            with pytest.raises(AbortedError, match="make a new one"):
                call(np.ones(1), 1 - comm.rank)

    run_threads(2, body, nodes=nodes(layout))


@pytest.mark.parametrize("what", ["recv", "send", "wait"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_abort_from_another_thread_ends_what_waits(layout, what):
    def body(comm):
        x, peer = np.zeros(LIMIT), (comm.rank + 1) % comm.world_size
        comm.barrier()
        if comm.rank == 0:
            threading.Timer(0.2, comm.abort, ["the disk is full"]).start()
        begin = time.monotonic()
        call = (lambda *a: comm.irecv(*a).wait()) if what == "wait" else getattr(comm, what)
        with pytest.raises(AbortedError, match="the disk is full"):
            call(x, peer)
        return time.monotonic() - begin < SOON

    assert all(run_threads(size(layout), body, nodes=nodes(layout)))


@pytest.mark.parametrize("layout", PAIRS)
def test_closing_ends_the_messages_under_way(layout):
    done = threading.Event()

    def body(comm):
        if comm.rank == 1:
            assert done.wait(20)
            return
        works = [comm.irecv(np.zeros(3), 1), comm.isend(np.zeros(LIMIT), 1)]
        comm.close()
        for work in works:
            with pytest.raises(AbortedError, match="closed with 2"):
                work.wait()
        done.set()

    run_threads(2, body, nodes=nodes(layout))


@pytest.mark.parametrize("layout", PAIRS)
def test_closing_meets_messages_of_another_thread(layout):
    # Whatever the moment: each call ends, in a result or in a typed error.
    def body(comm):
        ended = []

        def call():
            x = np.ones(4)
            try:
                while True:
                    comm.isend(x, 1 - comm.rank)
                    comm.recv(x, 1 - comm.rank)
            except (AbortedError, PeerError):
                ended.append(True)

        caller = threading.Thread(target=call)
        caller.start()
        time.sleep(np.random.default_rng(comm.rank).random() * 0.002)
        comm.close()
        caller.join(20)
        return ended

    for _ in range(10):
        assert run_threads(2, body, nodes=nodes(layout)) == [[True], [True]]
