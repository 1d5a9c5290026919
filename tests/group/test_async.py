"""Collectives in the background: many in flight, mixed with blocking ones, from several threads."""

import gc
import random
import sys
import threading
import time
import weakref

import numpy as np
import pytest
from group_cases import nodes, reduced, size, whole_numbers
from worlds import run_threads

from allreduce.communicator.communicator import Communicator
from allreduce.errors import AbortedError, MismatchError, PeerError
from allreduce.rendezvous.store import MemoryStore, PrefixStore

LAYOUTS = ("1x1", "1x3", "2x1", "2x2", "4x2", "3+1+2")


@pytest.mark.parametrize("lanes", [1, 2, 5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_many_are_in_flight_at_once(layout, lanes):
    p = size(layout)
    counts = [0, 1, 5, 17, 1000, 40_000, 3, 100_003] * 4
    inputs = [whole_numbers("float32", "sum", n, p, i) for i, n in enumerate(counts)]

    def body(comm):
        works = [comm.allreduce(row[comm.rank].copy(), async_op=True) for row in inputs]
        order = list(range(len(works)))
        random.Random(comm.rank).shuffle(order)  # ranks wait in orders of their own
        for i in order:
            np.testing.assert_array_equal(works[i].wait(), reduced("sum", inputs[i]))
            assert works[i].done()

    run_threads(p, body, nodes=nodes(layout), lanes=lanes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocking_and_background_ones_mix(layout):
    p = size(layout)

    def body(comm):
        rng = random.Random(comm.rank)
        works = []
        for i in range(120):
            count = (1, 300, 30_000)[i % 3]
            x = np.full(count, comm.rank + i, np.int64)
            total = p * (p - 1) // 2 + p * i
            if i % 5 == 4:
                comm.barrier()
            elif i % 5 == 3:
                assert (comm.allreduce(x) == total).all()
            else:
                works.append((comm.allreduce(x, async_op=True), total))
            if works and rng.random() < 0.3:
                work, want = works.pop(rng.randrange(len(works)))
                assert (work.wait() == want).all()
        for work, want in works:
            assert (work.wait() == want).all()

    run_threads(p, body, nodes=nodes(layout))


def test_a_wait_may_give_up_and_come_again():
    late = threading.Event()

    def body(comm):
        x = np.full(5, comm.rank + 1.0)
        if comm.rank == 1:
            assert late.wait(20)
        work = comm.allreduce(x, async_op=True)
        if comm.rank == 0:
            with pytest.raises(TimeoutError, match="goes on"):
                work.wait(timeout=0.05)
            assert not work.done()
            late.set()
        assert work.wait() is x
        assert work.wait() is x
        return x.tolist()

    assert run_threads(2, body) == [[3.0] * 5] * 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_nobody_waits_for_ends_after_a_burst(layout):
    def body(comm):
        x = np.zeros(1000)
        for _ in range(50):  # meanwhile the worker dozes
            comm.allreduce(x, async_op=True).wait()
        work = comm.allreduce(x, async_op=True)
        until = time.monotonic() + 20
        while not work.done() and time.monotonic() < until:
            time.sleep(0.001)
        assert work.done()

    run_threads(size(layout), body, nodes=nodes(layout))


@pytest.mark.parametrize("layout", ["1x2", "2x1"])
def test_the_array_lives_until_the_collective_has_ended(layout):
    class Array(np.ndarray):
        """An array that can be watched."""

    late = threading.Event()

    def body(comm):
        x = np.ones(100_000, np.float32).view(Array)
        if comm.rank == 1:
            assert late.wait(20)
            return bool((comm.allreduce(x) == 2).all())
        watched = weakref.ref(x)
        comm.allreduce(x, async_op=True)  # nobody keeps the work
        del x
        gc.collect()
        lives = watched() is not None
        late.set()
        comm.barrier()
        return lives

    def rank_one_too(comm):
        result = body(comm)
        if comm.rank == 1:
            comm.barrier()
        return result

    assert run_threads(2, rank_one_too, nodes=nodes(layout)) == [True, True]


def test_an_error_reaches_every_work_in_flight():
    gone = threading.Event()

    def body(comm):
        if comm.rank == 1:
            comm.barrier()
            assert gone.wait(20)
            return None
        comm.barrier()
        works = [comm.allreduce(np.ones(n), async_op=True) for n in (5, 10_000, 7)]
        time.sleep(0.05)
        gone.set()
        kinds = []
        for work in works:
            with pytest.raises((PeerError, AbortedError), match="rank 1"):
                work.wait()
            assert work.done()
            kinds.append(True)
        with pytest.raises(AbortedError, match="make a new one"):
            comm.allreduce(np.ones(5))
        return kinds

    assert run_threads(2, body)[0] == [True] * 3


def test_closing_ends_what_is_in_flight():
    done = threading.Event()

    def body(comm):
        if comm.rank == 1:
            assert done.wait(20)
            return
        work = comm.allreduce(np.ones(5), async_op=True)
        comm.close()
        with pytest.raises(AbortedError, match="closed with 1 collectives in flight"):
            work.wait()
        done.set()

    run_threads(2, body)


def test_closing_meets_calls_of_another_thread():
    # Whatever the moment: each call ends, in a result or in a typed error.
    def body(comm):
        ended = []

        def call():
            x = np.ones(4)
            try:
                while True:
                    comm.allreduce(x, async_op=len(ended) % 2 == 0)
            except (AbortedError, PeerError):
                ended.append(True)

        caller = threading.Thread(target=call)
        caller.start()
        time.sleep(random.random() * 0.004)
        comm.close()
        caller.join(20)
        return ended

    for _ in range(10):
        assert run_threads(2, body) == [[True], [True]]


@pytest.mark.parametrize("layout", ["1x3", "2x2"])
def test_threads_use_groups_of_their_own(layout):
    p, groups = size(layout), 3
    store = MemoryStore(30.0)

    def use(comm, group: int) -> bool:
        x = np.zeros(3000, np.int64)
        for i in range(60):
            x[:] = comm.rank + 100 * group + i
            comm.allreduce(x, async_op=False)
            if (x != p * (p - 1) // 2 + p * (100 * group + i)).any():
                return False
        return True

    def body(comm):
        results = [False] * groups

        def main(group: int) -> None:
            own = PrefixStore(store, f"group{group}")
            with Communicator.from_store(
                own, comm.rank, p, nodes=nodes(layout), measure=False, timeout=30.0
            ) as mine:
                results[group] = use(mine, group)

        threads = [threading.Thread(target=main, args=(g,)) for g in range(groups)]
        for thread in threads:
            thread.start()
        results.append(use(comm, 7))
        for thread in threads:
            thread.join(60)
        return results

    assert run_threads(p, body, nodes=nodes(layout)) == [[True] * (groups + 1)] * p


def test_threads_that_share_a_group_take_turns():
    # One rank at a time may be anywhere, so the calls must be alike for the order not to matter.
    def body(comm):
        results = []

        def call():
            for _ in range(40):
                x = np.ones(100, np.float32)
                comm.allreduce(x)
                results.append(float(x.sum()))

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return results

    assert run_threads(3, body) == [[300.0] * 160] * 3


@pytest.mark.parametrize("memory", ["private", "symmetric"])
@pytest.mark.parametrize("layout", ["1x4", "2x2", "2+1"])
def test_pieces_stay_in_order_when_ranks_drift_apart(layout, memory):
    # Large buffers, several in flight, each rank now ahead and now behind.
    counts = (1_000_003, 262_144, 999, 700_000)

    def body(comm):
        rng = random.Random(comm.rank)
        make = comm.symmetric_empty if memory == "symmetric" else np.empty
        buffers = [make(count, dtype="float32") for count in counts]
        for i in range(6):
            works = []
            for buffer in buffers:
                buffer[:] = comm.rank + i
                time.sleep(rng.choice((0, 0, 0.001, 0.004)))
                works.append(comm.allreduce(buffer, algo="halving_doubling", async_op=True))
            for work in works:
                result = work.wait()
                p = comm.world_size
                assert (result == p * (p - 1) // 2 + p * i).all()

    run_threads(size(layout), body, nodes=nodes(layout))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have notes from Python 3.11 on")
@pytest.mark.parametrize("message", [False, True])
def test_an_error_names_the_line_of_the_call(message):
    def body(comm):
        x = np.zeros(4 + comm.rank)
        if message and comm.rank == 1:  # more than the other expects, who hears of it
            comm.isend(x, 0)
            return
        line = sys._getframe().f_lineno + 1
        work = comm.irecv(x, 1) if message else comm.allreduce(x, async_op=True)
        with pytest.raises(MismatchError) as raised:
            work.wait()
        assert raised.value.__notes__ == [f"called at {__file__}:{line}"]

    run_threads(2, body)
