"""What messages cost others: memory that is set aside, threads and ranks that wait, CPU."""

import resource
import threading
import time

import numpy as np
import pytest
from group_cases import nodes, size
from worlds import SANITIZED, hear, processes, run_threads, tell

LIMIT = 128 << 10  # bytes; larger messages are announced
WINDOW = 1 << 20  # bytes that a peer sets aside for one sender
PAIRS = ("1x2", "2x1")
processes_only = pytest.mark.skipif(SANITIZED, reason="processes")


@pytest.mark.parametrize("layout", PAIRS)
def test_thousands_may_be_under_way_before_the_first_receive(layout):
    count = 2000

    def body(comm):
        peer, row = 1 - comm.rank, np.arange(8 << 10, dtype=np.uint8)
        works = [comm.isend(np.roll(row, i), peer, i % 3) for i in range(count)]
        comm.barrier()
        for tag in (2, 0, 1):
            for i in range(tag, count, 3):
                x = np.empty(8 << 10, np.uint8)
                comm.recv(x, peer, tag)
                np.testing.assert_array_equal(x, np.roll(row, i))
        for work in works:
            work.wait()

    run_threads(2, body, nodes=nodes(layout))


def resident() -> int:
    """Bytes of memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def set_aside(comm, count: int, nbytes: int) -> int:
    """How many bytes the receiver's memory has grown by before it receives."""
    x = np.zeros(nbytes, np.uint8)
    if comm.rank == 0:
        works = [comm.isend(x, 1) for _ in range(count)]
        comm.send(x[:1], 1, tag=1)  # when it has come, so have all before, or their headers
        for work in works:
            work.wait()
        return 0
    before = resident()
    comm.recv(x[:1], 0, tag=1)
    grown = resident() - before
    for _ in range(count):
        comm.recv(x, 0)
    return grown


@processes_only
@pytest.mark.parametrize("nbytes", [4 << 10, LIMIT])
@pytest.mark.parametrize("layout", PAIRS)
def test_what_is_set_aside_is_bounded(tmp_path, layout, nbytes):
    count = 12 * WINDOW // nbytes
    with processes(
        2, set_aside, tmp_path, count, nbytes, helpers=(resident,), nodes=nodes(layout)
    ) as world:
        outcomes = world.join()
    assert [o.error for o in outcomes] == ["", ""], outcomes
    assert outcomes[1].result < 6 * WINDOW


@pytest.mark.parametrize("nbytes", [1, 8 << 10, LIMIT])
@pytest.mark.parametrize("layout", [*PAIRS, "2x2", "1x8"])
def test_a_window_of_small_messages_is_sent_before_a_barrier_and_received_after(layout, nbytes):
    # Who is in a collective takes what is sent to it, or the sender would never come.
    p = 8 if layout == "1x8" else size(layout)
    where = [0] * 8 if layout == "1x8" else nodes(layout)
    count = min(WINDOW // nbytes, 400)

    def body(comm):
        x, last = np.full(nbytes, comm.rank, np.uint8), comm.world_size - 1
        if comm.rank == last:
            comm.barrier()
        for _ in range(count):
            if comm.rank == 0:
                comm.send(x, last)
            elif comm.rank == last:
                comm.recv(x, 0)
                assert (x == 0).all()
        if comm.rank != last:
            comm.barrier()

    run_threads(p, body, nodes=where)


@pytest.mark.parametrize("layout", PAIRS)
def test_what_has_been_received_leaves_the_window(layout):
    def body(comm):
        x = np.zeros(8 << 10, np.uint8)
        for _ in range(5):
            for _ in range(WINDOW // x.size):  # nothing goes the other way
                comm.send(x, 1) if comm.rank == 0 else comm.recv(x, 0)
            if comm.rank == 0:
                comm.send(x, 1)
            comm.barrier()
            if comm.rank == 1:
                comm.recv(x, 0)

    run_threads(2, body, nodes=nodes(layout))


@pytest.mark.parametrize("layout", PAIRS)
def test_room_is_used_by_a_message_that_came_when_there_was_none(layout):
    def body(comm):
        x = np.zeros(8 << 10, np.uint8)
        count = WINDOW // x.size
        if comm.rank == 0:
            works = [comm.isend(x, 1) for _ in range(count + 1)]  # the last finds no room
            comm.send(x[:0], 1, tag=1)
            for work in works:
                work.wait()
        else:
            comm.recv(x[:0], 0, tag=1)  # behind all of them
            for _ in range(count):
                comm.recv(x, 0)
        comm.barrier()
        if comm.rank == 1:
            comm.recv(x, 0)

    run_threads(2, body, nodes=nodes(layout), timeout=10.0)


def test_what_was_read_ahead_from_a_socket_is_not_forgotten():
    """The last message, which needs an answer, is read from the socket with those before it."""

    def body(comm):
        x = np.zeros(8 << 10, np.uint8)
        for more in range(16):  # how many of them a turn takes in is no affair of this test
            if comm.rank == 0:
                for _ in range(more):
                    comm.send(x[:0], 1, tag=1)
                for _ in range(WINDOW // x.size + 1):
                    comm.send(x, 1)
            else:
                time.sleep(0.05)  # until they are there
                for _ in range(more):
                    comm.recv(x[:0], 0, tag=1)
                for _ in range(WINDOW // x.size):
                    comm.recv(x, 0)
            comm.barrier()
            if comm.rank == 1:
                comm.recv(x, 0)

    run_threads(2, body, nodes=[0, 1], timeout=10.0)


@pytest.mark.parametrize("layout", ["1x2", "2x1", "2x2"])
def test_messages_and_collectives_mix_in_the_threads_of_a_rank(layout):
    p, rounds = size(layout), 40

    def body(comm):
        failures = []

        def collect():
            for i in range(rounds):
                x = np.full((10, 5000)[i % 2], comm.rank + i)
                assert (comm.allreduce(x) == p * (p - 1) // 2 + p * i).all()

        def exchange(tag: int) -> None:
            left, right = (comm.rank - 1) % p, (comm.rank + 1) % p
            for i in range(rounds):
                n = (3, 700, 20_000)[(i + tag) % 3]
                x = np.empty(n, np.int64)
                work = comm.isend(np.full(n, 1000 * tag + i), right, tag)
                assert comm.recv(x, left, tag) == (left, tag)
                assert (x == 1000 * tag + i).all()
                work.wait()

        def guarded(call, *arguments) -> None:
            try:
                call(*arguments)
            except BaseException as error:
                failures.append(error)
                comm.abort(str(error))

        calls = [(collect,), *((exchange, tag) for tag in range(1, 4))]
        threads = [threading.Thread(target=guarded, args=call) for call in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return failures

    assert run_threads(p, body, nodes=nodes(layout)) == [[]] * p


@pytest.mark.parametrize("layout", ["1x2", "2x1", "1x3", "2x2"])
def test_a_thread_that_waits_for_a_message_keeps_no_other_from_working(layout):
    p = size(layout)

    def body(comm):
        got = []
        x = np.empty(5)
        receiver = threading.Thread(target=lambda: got.append(comm.recv(x, None, tag=9)))
        receiver.start()
        for i in range(30):
            assert comm.allreduce(np.full(100, comm.rank + i)).max() == p * (p - 1) // 2 + p * i
            work = comm.isend(np.full(50_000, i), (comm.rank + 1) % p, tag=1)
            y = np.empty(50_000, np.int64)
            comm.recv(y, (comm.rank - 1) % p, tag=1)
            assert (y == i).all()
            work.wait()
        assert got == []
        comm.barrier()
        comm.send(np.full(5, float(comm.rank)), (comm.rank + 1) % p, tag=9)
        receiver.join(30)
        return got == [((comm.rank - 1) % p, 9)] and bool((x == (comm.rank - 1) % p).all())

    assert run_threads(p, body, nodes=nodes(layout)) == [True] * p


def wait_idle(comm) -> list[float]:
    """Seconds of CPU in one of idleness: with nothing under way, then with a receive."""
    x, peer = np.zeros(100_000), 1 - comm.rank
    seconds = []
    for tag in range(2):
        for y in (x, x[:10]):
            work = comm.isend(y, peer)
            comm.recv(y.copy(), peer)
            work.wait()
        if tag == 1:
            comm.irecv(x[:5], peer, tag=1)
        tell(f"idle{tag}")
        hear(f"go{tag}")
        before = time.process_time()
        time.sleep(1.0)
        seconds.append(time.process_time() - before)
        comm.barrier()
    comm.send(x[:5], peer, tag=1)
    comm.barrier()
    return seconds


@processes_only
@pytest.mark.parametrize("layout", PAIRS)
def test_a_group_whose_messages_have_ended_or_not_begun_uses_no_cpu(tmp_path, layout):
    with processes(2, wait_idle, tmp_path, nodes=nodes(layout)) as world:
        for word in ("0", "1"):
            world.wait_for(f"idle{word}")
            world.tell(f"go{word}")
        outcomes = world.join()
    assert [o.error for o in outcomes] == ["", ""], outcomes
    assert max(o.result[0] for o in outcomes) < 0.05, outcomes
    assert max(o.result[1] for o in outcomes) < 0.1, outcomes
