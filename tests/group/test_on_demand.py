"""Groups whose ranks are connected at their first use, and hear of each other by way of others."""

import contextlib
import os
import socket
import threading
import time

import numpy as np
import pytest
from worlds import SANITIZED, processes, run_threads

from allreduce.communicator.communicator import Communicator
from allreduce.errors import AbortedError, MismatchError, PeerError, Timeout, UsageError
from allreduce.rendezvous.connect import connect_option
from allreduce.rendezvous.mesh_builder import children_of, links_of, parent_of
from allreduce.rendezvous.store import MemoryStore

# In a world of 8 nodes these two have no control link.
SPARSE, FAR = 8, (0, 3)


def run(layout, body, **options):
    num_nodes, per_node = map(int, layout.split("x"))
    options = {"connect": "needed", "nodes": num_nodes, **options}
    return run_threads(num_nodes * per_node, body, **options)


def tcp_sockets() -> int:
    """Connections of this process over TCP, listeners not counted."""
    from pathlib import Path

    inodes = set()
    for line in Path("/proc/self/net/tcp").read_text().splitlines():
        fields = line.split()
        if fields[3] == "01":  # established
            inodes.add(f"socket:[{fields[9]}]")
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the list itself
            count += os.readlink(f"/proc/self/fd/{fd}") in inodes
    return count


@pytest.mark.parametrize("layout", ["2x1", "2x2", "4x2", "3x3"])
@pytest.mark.parametrize("local", ["rs_ag", "none"])
def test_every_collective_finds_its_connections(layout, local):
    def body(comm):
        p, r = comm.world_size, comm.rank
        for algo in ("halving_doubling", "ring", "recursive_doubling", "bcube", "direct"):
            x = np.full(5000, r + 1.0, np.float32)
            comm.allreduce(x, algo=algo)
            assert x[0] == x[-1] == p * (p + 1) / 2
        for root in range(p):
            x = np.full(300, r, np.int64)
            assert comm.broadcast(x, root)[7] == root
            assert (comm.reduce(np.full(9, 2), root=root)[0] == 2 * p) == (r == root)
        assert list(comm.allgather(np.array([r]))) == list(range(p))
        assert comm.reduce_scatter(np.arange(2 * p))[0] == 2 * r * p
        assert list(comm.alltoall(np.arange(p) + 100 * r)) == [100 * i + r for i in range(p)]
        comm.barrier()
        return comm.traffic()["network_bytes"]

    assert all(run(layout, body, local=local))


def connections_of(comm) -> int:
    comm.allreduce(np.ones(4), algo="halving_doubling")
    comm.barrier()
    counts = []
    for _ in range(10):  # a request for a connection may still be open
        counts.append(tcp_sockets())
        time.sleep(0.05)
    comm.barrier()  # nobody has closed one by then
    return min(counts)


@pytest.mark.skipif(SANITIZED, reason="processes")
def test_a_rank_has_the_connections_that_it_needs(tmp_path):
    helpers = (tcp_sockets,)
    counts = {}
    for connect in ("needed", "all"):
        env = {"ALLREDUCE_CONNECT": connect}
        with processes(
            SPARSE, connections_of, tmp_path / connect, nodes=SPARSE, env=env, helpers=helpers
        ) as world:
            outcomes = world.join()
        assert not any(outcome.error for outcome in outcomes), outcomes
        counts[connect] = [outcome.result for outcome in outcomes]
    lanes = 2
    assert counts["all"] == [7 * (1 + lanes + 1)] * SPARSE
    # Five control connections; the peers of halving/doubling and of the barrier are the same five.
    assert max(counts["needed"]) <= 5 + 5 * (lanes + 1), counts


def test_control_links_are_few_and_no_death_divides_them():
    for p in (33, 64, 100, 256, 1000):
        neighbours = [
            {link.peer_of(r) for link in links_of(r, range(p), 2, connect_all=False)}
            for r in range(p)
        ]
        assert max(map(len, neighbours)) <= 2 * p.bit_length()
        for dead in range(0, p, 7):
            reached, todo = {dead}, [(dead + 1) % p]
            while todo:
                rank = todo.pop()
                if rank not in reached:
                    reached.add(rank)
                    todo += neighbours[rank]
            assert len(reached) == p


def test_the_tree_of_a_start_up_lies_on_control_links():
    for p in range(2, 70):
        below = [child for rank in range(p) for child in children_of(rank, p)]
        assert sorted(below) == list(range(1, p))
        for rank in range(1, p):
            assert rank in children_of(parent_of(rank), p)
            links = links_of(rank, range(p), 2, connect_all=False)
            assert parent_of(rank) in {link.peer_of(rank) for link in links}


@pytest.mark.parametrize("pair", [(0, 1), (1, 0), FAR, FAR[::-1]], ids=str)
@pytest.mark.parametrize("count", [10, 100_000])
def test_messages_connect_whoever_begins(pair, count):
    sender, receiver = pair

    def body(comm):
        if comm.rank == sender:
            comm.send(np.arange(count), receiver)
            comm.recv(np.empty(3), receiver, tag=1)
        elif comm.rank == receiver:
            x = np.zeros(count, np.int64)
            comm.recv(x, sender)
            assert (x == np.arange(count)).all()
            comm.send(np.empty(3), sender, tag=1)

    run("8x1", body)


def test_all_pairs_at_once():
    def body(comm):
        others = [r for r in range(comm.world_size) if r != comm.rank]
        inboxes = {r: np.zeros(1000, np.int64) for r in others}
        works = [comm.irecv(inboxes[r], r) for r in others]
        works += [comm.isend(np.full(1000, comm.rank), r) for r in others]
        for work in works:
            work.wait()
        assert all((inboxes[r] == r).all() for r in others)

    for _ in range(3):
        run("8x1", body)


def test_a_message_reaches_a_rank_that_is_busy_with_something_else():
    sent = threading.Event()

    def body(comm):
        if comm.rank == FAR[0]:
            comm.send(np.ones(10), FAR[1])  # eager: it needs nobody at the other end
            sent.set()
        elif comm.rank == FAR[1]:
            assert sent.wait(10)
            x = np.zeros(10)
            comm.recv(x, FAR[0])
            assert (x == 1).all()

    run("8x1", body)


def test_a_message_from_whomever():
    def body(comm):
        if comm.rank == 3:
            return sorted(comm.recv(np.zeros(1)).source for _ in range(7))
        time.sleep(0.01 * comm.rank)
        comm.send(np.array([float(comm.rank)]), 3)
        return None

    assert run("8x1", body)[3] == [0, 1, 2, 4, 5, 6, 7]


def test_an_abort_reaches_those_without_a_link_to_its_rank():
    def body(comm):
        if comm.rank == FAR[0]:
            time.sleep(0.2)
            comm.abort("enough")
        else:
            with pytest.raises(AbortedError, match="enough"):
                comm.barrier()
        return True

    assert run("8x1", body) == [True] * SPARSE


def test_an_abort_passes_ranks_that_call_nothing():
    over = threading.Event()

    def body(comm):
        if comm.rank == FAR[0]:
            time.sleep(0.2)
            comm.abort("enough")
        if comm.rank != FAR[1]:
            return over.wait(20)
        begin = time.monotonic()
        with pytest.raises(AbortedError, match="enough"):
            comm.recv(np.zeros(1), 5)  # of a rank that is alive
        over.set()
        return time.monotonic() - begin < 5

    assert run("8x1", body) == [True] * SPARSE


def wait_for_the_other(comm, how) -> str:
    comm.barrier()
    if comm.rank == 0:
        tell("there")  # noqa: F821 - the namespace of ranks has it
        hear("never")  # noqa: F821
    if comm.rank != 3:
        hear("over")  # noqa: F821
        return ""
    tell("there")  # noqa: F821
    try:
        if how == "collective":
            comm.allreduce(np.ones(1000), algo="direct")
        else:
            comm.recv(np.ones(10), 0)
    finally:
        tell("over")  # noqa: F821
    return "nothing was raised"


@pytest.mark.skipif(SANITIZED, reason="processes")
@pytest.mark.parametrize("how", ["collective", "message"])
def test_a_death_is_noticed_by_a_rank_that_was_never_connected(tmp_path, how):
    env = {"ALLREDUCE_CONNECT": "needed"}
    with processes(
        SPARSE, wait_for_the_other, tmp_path, how, nodes=SPARSE, env=env, close=False
    ) as world:
        world.wait_for("there", [0, 3])
        at = world.kill(0)
        (outcome,) = world.join([3])
    assert (outcome.error, outcome.culprit) == ("PeerError", 0), outcome
    assert "died" in outcome.text
    assert outcome.at - at < 5


def test_a_rank_that_left_without_a_connection_is_named():
    left = threading.Event()

    def body(comm):
        if comm.rank == FAR[0]:
            comm.close()
            left.set()
        elif comm.rank == FAR[1]:
            left.wait(10)
            with pytest.raises(PeerError, match=f"rank {FAR[0]} left the group"):
                comm.recv(np.zeros(1), FAR[0])
        else:
            left.wait(10)
            time.sleep(0.5)
        return True

    assert run("8x1", body) == [True] * SPARSE


def test_a_rank_that_was_connected_while_it_called_nothing_closes_that_too():
    sent, closed, over = threading.Event(), threading.Event(), threading.Event()

    def body(comm):
        if comm.rank == FAR[0]:
            assert sent.wait(10)
            comm.close()
            closed.set()
            return over.wait(30)  # its communicator lives on
        if comm.rank != FAR[1]:
            return over.wait(30)
        comm.send(np.ones(10), FAR[0])
        sent.set()
        assert closed.wait(10)
        begin = time.monotonic()
        with pytest.raises(PeerError, match=f"rank {FAR[0]}"):
            comm.recv(np.zeros(1), FAR[0])
        over.set()
        return time.monotonic() - begin < 10

    assert run("8x1", body) == [True] * SPARSE


def test_ranks_that_disagree_are_told_by_way_of_others():
    def body(comm):
        count = 11 if comm.rank == FAR[0] else 10
        with pytest.raises(MismatchError, match="ranks disagree"):
            comm.allreduce(np.ones(count))
        return True

    assert run("8x1", body) == [True] * SPARSE


def test_a_timeout_names_the_one_rank_that_did_not_come():
    over = threading.Event()

    def body(comm):
        comm.barrier()
        if comm.rank == FAR[0]:
            return over.wait(30)
        with pytest.raises((Timeout, AbortedError)) as caught:
            comm.allreduce(np.ones(10), timeout=4.0)
        over.set()
        return str(caught.value)

    texts = run("8x1", body)[1:]
    assert any("no sign that rank 0 entered it" in text for text in texts), texts


def test_strangers_are_not_let_in_and_harm_nobody():
    ports = {}

    def body(comm):
        if comm.rank == 0:
            acceptor = comm._connections.connector._acceptor
            host, port = acceptor._listener.getsockname()
            ports["listener"] = port
            strangers = [socket.create_connection((host, port)) for _ in range(80)]
            for stranger in strangers[::2]:
                stranger.sendall(os.urandom(100))
        comm.barrier()
        x = comm.allreduce(np.ones(1000), algo="direct")
        assert x[0] == comm.world_size
        comm.barrier()

    run("4x1", body)
    with pytest.raises(ConnectionRefusedError):  # it is closed with the group
        socket.create_connection(("127.0.0.1", ports["listener"]))


def test_nothing_stays_open():
    def once():
        run("4x1", lambda comm: comm.allreduce(np.ones(10), algo="direct"))

    once()
    before = (len(os.listdir("/proc/self/fd")), threading.active_count())
    for _ in range(3):
        once()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


def test_ranks_must_agree_how_to_connect():
    def body(comm):
        return None

    errors = run_threads(
        2,
        body,
        nodes=2,
        errors=True,
        timeout=5.0,
        per_rank=lambda rank: {"connect": ("all", "needed")[rank]},
    )
    for error in errors:
        assert isinstance(error, UsageError), errors
        assert "connect is all on rank 0 but needed on rank 1" in str(error)


def test_the_option():
    assert connect_option(None, 32, {}) == "all"
    assert connect_option(None, 33, {}) == "needed"
    assert connect_option("all", 1000, {"ALLREDUCE_CONNECT": "needed"}) == "all"
    assert connect_option(None, 2, {"ALLREDUCE_CONNECT": "needed"}) == "needed"
    with pytest.raises(UsageError, match="ALLREDUCE_CONNECT='some': must be all or needed"):
        connect_option(None, 2, {"ALLREDUCE_CONNECT": "some"})
    with pytest.raises(UsageError, match="connect='some'"):
        Communicator.from_store(MemoryStore(), 0, 2, connect="some")


def fork_and_wait(comm) -> int:
    import os

    comm.barrier()
    pid = os.fork()
    if pid == 0:
        with os.scandir("/proc/self/fd") as entries:
            kinds = [os.readlink(entry.path) for entry in entries if entry.name > "2"]
        os._exit(sum(kind.startswith("socket:") for kind in kinds))
    _, status = os.waitpid(pid, 0)
    comm.allreduce(np.ones(10), algo="direct")  # the parent's thread goes on
    comm.barrier()
    return os.waitstatus_to_exitcode(status)


@pytest.mark.skipif(SANITIZED, reason="processes")
def test_a_child_keeps_no_socket_and_its_parent_goes_on(tmp_path):
    env = {"ALLREDUCE_CONNECT": "needed"}
    with processes(4, fork_and_wait, tmp_path, nodes=4, env=env) as world:
        assert [outcome.result for outcome in world.join()] == [0] * 4
