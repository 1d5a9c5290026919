"""Messages between two ranks: sizes, order, tags, any source, works."""

import gc
import random
import time

import numpy as np
import pytest
from group_cases import nodes, size
from worlds import run_threads

LIMIT = 128 << 10  # bytes; larger messages are announced
SIZES = (0, 1, 40, LIMIT - 1, LIMIT, LIMIT + 1, 3 << 20)
PAIRS = ("1x2", "2x1")
LAYOUTS = (*PAIRS, "1x4", "2x2", "scattered")


def content(source: int, dest: int, tag: int, nbytes: int) -> np.ndarray:
    return np.random.default_rng([source, dest, tag]).integers(0, 256, nbytes, np.uint8)


def others(comm) -> list[int]:
    return [rank for rank in range(comm.world_size) if rank != comm.rank]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("first", ["send", "receive"])
def test_all_pairs_exchange_messages_of_all_sizes_at_once(layout, first):
    def body(comm):
        def send():
            for peer in others(comm):
                for tag, n in enumerate(SIZES):
                    sent.append(comm.isend(content(comm.rank, peer, tag, n), peer, tag))

        def receive():
            for peer in others(comm):
                for tag, n in enumerate(SIZES):
                    received.append((comm.irecv(np.empty(n, np.uint8), peer, tag), peer, tag))

        sent, received = [], []
        for post in (send, receive) if first == "send" else (receive, send):
            post()
            comm.barrier()
        for work, peer, tag in received:
            want = content(peer, comm.rank, tag, SIZES[tag])
            np.testing.assert_array_equal(work.wait(), want)
            assert (work.source, work.tag) == (peer, tag)
        for work in sent:
            work.wait()

    run_threads(size(layout), body, nodes=nodes(layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocking_messages_travel_around_a_ring(layout):
    def body(comm):
        p, rank = comm.world_size, comm.rank
        for tag, n in enumerate(SIZES):
            x = np.empty(n, np.uint8)
            if rank == 0:
                comm.send(content(0, 1, tag, n), 1, tag)
            assert comm.recv(x, (rank - 1) % p, tag) == ((rank - 1) % p, tag)
            np.testing.assert_array_equal(x, content(0, 1, tag, n))
            if rank != 0:
                comm.send(x, (rank + 1) % p, tag)

    run_threads(size(layout), body, nodes=nodes(layout))


@pytest.mark.parametrize("nbytes", [0, 1, LIMIT])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_may_send_a_small_message_first(layout, nbytes):
    def body(comm):
        for i in range(8):
            for peer in others(comm):
                comm.send(content(comm.rank, peer, i, nbytes), peer)
            for peer in others(comm):
                x = np.empty(nbytes, np.uint8)
                comm.recv(x, peer)
                np.testing.assert_array_equal(x, content(peer, comm.rank, i, nbytes))

    run_threads(size(layout), body, nodes=nodes(layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_messages_with_one_tag_do_not_overtake_each_other(layout):
    # Of sizes that go different ways: at once, set aside, announced.
    count = 60

    def length(source: int, dest: int, tag: int, i: int) -> int:
        return 1 + random.Random(f"{source} {dest} {tag} {i}").choice((0, 300, LIMIT, 3 * LIMIT))

    def body(comm):
        rng = random.Random(comm.rank)
        posts = [(peer, tag, kind) for peer in others(comm) for tag in (0, 1) for kind in "sr"]
        posts *= count
        rng.shuffle(posts)
        number = dict.fromkeys(posts, 0)
        works, checks = [], []
        for peer, tag, kind in posts:
            i = number[peer, tag, kind]
            number[peer, tag, kind] += 1
            ends = (comm.rank, peer) if kind == "s" else (peer, comm.rank)
            x = np.full(length(*ends, tag, i), i, np.uint8)
            if kind == "s":
                works.append(comm.isend(x, peer, tag))
            else:
                x[:] = 255
                checks.append((comm.irecv(x, peer, tag), i))
        for work, i in checks:
            assert (work.wait() == i).all()
        for work in works:
            work.wait()

    run_threads(size(layout), body, nodes=nodes(layout))


@pytest.mark.parametrize("nbytes", [8, 2 * LIMIT])
@pytest.mark.parametrize("layout", PAIRS)
def test_tags_are_received_in_any_order(layout, nbytes):
    def body(comm):
        if comm.rank == 0:
            works = [comm.isend(np.full(nbytes, tag, np.uint8), 1, tag) for tag in range(20)]
            for work in works:
                work.wait()
        else:
            for tag in reversed(range(20)):
                x = np.empty(nbytes, np.uint8)
                assert comm.recv(x, 0, tag) == (0, tag)
                assert (x == tag).all()

    run_threads(2, body, nodes=nodes(layout))


@pytest.mark.parametrize("nbytes", [8, 2 * LIMIT])
@pytest.mark.parametrize("layout", ["1x4", "2x2", "scattered"])
def test_a_receive_from_any_rank_tells_which(layout, nbytes):
    count = 30

    def body(comm):
        if comm.rank != 1:
            for i in range(count):
                comm.send(np.array([comm.rank, i] * (nbytes // 8), np.int32), 1, tag=3)
            return
        seen = dict.fromkeys(others(comm), 0)
        for _ in range(count * len(seen)):
            x = np.empty(nbytes // 4, np.int32)
            source, tag = comm.recv(x, source=None, tag=3)
            assert tag == 3
            assert x[:2].tolist() == [source, seen[source]]  # in order from each rank
            seen[source] += 1
        assert set(seen.values()) == {count}

    run_threads(size(layout), body, nodes=nodes(layout))


@pytest.mark.parametrize("posted", ["before", "after"])
@pytest.mark.parametrize("layout", PAIRS)
def test_a_receive_with_any_tag_takes_the_oldest_message(layout, posted):
    tags = (7, 0, 123_456_789, 7, (1 << 31) - 1)

    def body(comm):
        if comm.rank == 0 and posted == "before":
            comm.barrier()
        if comm.rank == 0:
            for i, tag in enumerate(tags):
                comm.send(np.array([i]), 1, tag)
        if posted == "after":
            comm.barrier()
        if comm.rank == 1:
            works = [comm.irecv(np.empty(1, np.int64), 0, None) for _ in tags]
            if posted == "before":
                comm.barrier()
            assert [int(work.wait()[0]) for work in works] == list(range(len(tags)))
            assert [work.tag for work in works] == list(tags)

    run_threads(2, body, nodes=nodes(layout))


@pytest.mark.parametrize("layout", ["1x3", "2+1"])
def test_a_message_goes_to_the_first_receive_that_fits_it(layout):
    def body(comm):
        if comm.rank == 0:
            fits = [(2, 5), (None, 5), (1, None), (None, None), (1, 5)]
            works = [comm.irecv(np.empty(1, np.int64), *fit) for fit in fits]
            comm.barrier()
            return [(work.wait().item(), work.source, work.tag) for work in works]
        comm.barrier()
        if comm.rank == 1:
            for i, tag in enumerate((5, 9, 5, 5)):
                comm.send(np.array([i]), 0, tag)
            comm.send(np.array([0]), 2)
        else:
            comm.recv(np.empty(1, np.int64), 1)
            comm.send(np.array([4]), 0, 5)
        return None

    want = [(4, 2, 5), (0, 1, 5), (1, 1, 9), (2, 1, 5), (3, 1, 5)]
    assert run_threads(3, body, nodes=nodes(layout))[0] == want


@pytest.mark.parametrize("nbytes", [64, 4 * LIMIT])
@pytest.mark.parametrize("layout", PAIRS)
def test_works_that_nobody_keeps_end_all_the_same(layout, nbytes):
    def body(comm):
        inbox = [np.zeros(nbytes, np.uint8) for _ in range(20)]
        for i in range(20):
            comm.irecv(inbox[i], 1 - comm.rank)
            comm.isend(np.full(nbytes, i, np.uint8), 1 - comm.rank)  # nor the array
            gc.collect()
        x = np.zeros(1)
        work = comm.irecv(x, 1 - comm.rank, tag=1)
        comm.send(x, 1 - comm.rank, tag=1)
        work.wait()
        begin = time.monotonic()
        while any((row != i).any() for i, row in enumerate(inbox)):
            assert time.monotonic() - begin < 10
            time.sleep(0.001)
        comm.barrier()

    run_threads(2, body, nodes=nodes(layout))


@pytest.mark.parametrize("layout", PAIRS)
def test_a_wait_may_give_up_and_the_message_comes_yet(layout):
    def body(comm):
        x = np.zeros(3)
        if comm.rank == 0:
            work = comm.irecv(x, 1)
            with pytest.raises(TimeoutError, match="goes on"):
                work.wait(timeout=0.05)
            assert not work.done()
            comm.send(x, 1)
            assert work.wait() is x
            assert work.done()
            return x.tolist()
        comm.recv(x, 0)
        comm.send(np.ones(3), 0)
        return x.tolist()

    assert run_threads(2, body, nodes=nodes(layout)) == [[1.0] * 3, [0.0] * 3]


@pytest.mark.parametrize("layout", PAIRS)
def test_messages_count_as_traffic(layout):
    key = "network_bytes" if layout == "2x1" else "shared_memory_bytes"

    def body(comm):
        x = np.zeros(1 << 20, np.uint8)
        before = comm.traffic()[key]
        comm.send(x, 1) if comm.rank == 0 else comm.recv(x, 0)
        return comm.traffic()[key] - before

    sent, answered = run_threads(2, body, nodes=nodes(layout))
    assert 1 << 20 <= sent < (1 << 20) + 200
    assert answered < 200
