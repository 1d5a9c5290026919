"""Two connections to one peer keep no order between them: one may be later than the other."""

import socket
import threading
import time

import numpy as np
import pytest
from holding_relays import relayed
from worlds import run_threads

from allreduce.errors import PeerError

LIMIT = 128 << 10  # bytes; larger messages are announced


def release_after(closed, relay) -> None:
    closed.wait(20)
    time.sleep(0.5)
    relay().release()


@pytest.mark.parametrize("source", [1, None])
@pytest.mark.parametrize("count", [1, 1000, LIMIT // 8, 100_000])
def test_what_a_rank_has_sent_before_it_closed_arrives_behind_its_goodbye(
    monkeypatch, count, source
):
    closed = threading.Event()
    free = 0 if count * 8 <= LIMIT else 1000  # a large one is announced, granted, and then held

    def body(comm):
        if comm.rank == 1:
            comm.send(np.full(count, 7), 0, tag=3)
            comm.close()
            closed.set()
            return 0
        # It waits before, while and after the goodbye comes; the message comes at last.
        threading.Thread(target=release_after, args=(closed, relay), daemon=True).start()
        x = np.zeros(count, np.int64)
        comm.recv(x, source, tag=3)
        return int(x.sum())

    with relayed(monkeypatch, 0, 1, -1, free) as relay:
        assert run_threads(2, body, nodes=2)[0] == 7 * count


def test_a_rank_that_has_closed_without_sending_is_named_once_its_stream_ends(monkeypatch):
    def body(comm):
        if comm.rank == 1:
            comm.close()
            threading.Timer(0.5, lambda: relay().release()).start()
            return
        begin = time.monotonic()
        with pytest.raises(PeerError, match=r"rank 1 left the group"):
            comm.recv(np.zeros(3), 1)
        assert time.monotonic() - begin > 0.2

    with relayed(monkeypatch, 0, 1, -1) as relay:
        run_threads(2, body, nodes=2)


def test_a_receive_posted_after_the_end_of_the_stream_fails_at_once():
    over = threading.Event()

    def body(comm):
        if comm.rank == 1:
            comm.send(np.ones(3), 0, tag=1)
            comm.close()
            over.set()
            return
        assert over.wait(20)
        comm.recv(np.zeros(3), 1, tag=1)
        for _ in range(2):  # a failed group says the same again
            with pytest.raises(Exception, match=r"rank 1 left the group"):
                comm.recv(np.zeros(3), 1, tag=2)

    run_threads(2, body, nodes=2)


@pytest.mark.parametrize("lane", [0, 1])
@pytest.mark.parametrize("root", [1, 2])
def test_a_broadcast_arrives_behind_the_goodbye_of_who_sent_it(monkeypatch, root, lane):
    closed = threading.Event()

    def body(comm):
        for _ in range(lane):
            comm.barrier()  # the next call takes the next lane
        if comm.rank == 0:
            threading.Thread(target=release_after, args=(closed, relay), daemon=True).start()
        x = np.full(1000, comm.rank, np.int64)
        comm.broadcast(x, root)
        if comm.rank == root:
            comm.close()
            closed.set()
        return int(x[0])

    with relayed(monkeypatch, 0, root, lane) as relay:
        assert run_threads(3, body, nodes=3) == [root] * 3


def test_a_rank_that_closes_waits_until_the_other_host_has_its_message(monkeypatch):
    """Else a reset, for whatever comes to the closed connection, would destroy the rest of it."""
    make = socket.socket.accept

    def accept(self):
        sock, address = make(self)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        return sock, address

    monkeypatch.setattr(socket.socket, "accept", accept)
    closed = threading.Event()

    def body(comm):
        if comm.rank == 1:
            comm.send(np.full(LIMIT // 8, 7), 0)  # what rank 0 has no room for is in this kernel
            comm.close()
            closed.set()
            return 0
        early = closed.wait(0.5)
        x = np.zeros(LIMIT // 8, np.int64)
        comm.recv(x, 1)
        assert closed.wait(5)
        return early, int(x.sum())

    assert run_threads(2, body, nodes=2)[0] == (False, 7 * (LIMIT // 8))
