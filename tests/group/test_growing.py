"""Groups that take in further processes."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from group_cases import nodes, size, total, until_error
from worlds import TIMEOUT, run_threads

from allreduce import Communicator
from allreduce.communicator import joining as joining_module
from allreduce.communicator import regrouping
from allreduce.errors import AbortedError, Error, PeerError, Timeout, UsageError
from allreduce.rendezvous.store import FileStore, MemoryStore, PrefixStore
from allreduce.rendezvous.tcp_store import TcpStore


def test_who_is_not_of_this_job_is_passed_over(caplog):
    store, found = MemoryStore(TIMEOUT), []
    store.set("grow/asked/1", b"not of this job")
    store.add("grow/asked", 1)

    def body(comm):
        with joining(comm, store, found), comm.grow() as more:
            assert total(more) == 3

    run_threads(2, body, store=store)
    assert "a process that asks to join has the seal of another job" in caplog.text
    assert [rank for rank, *_ in found] == [2]


def test_rank_0_cannot_take_anybody_in_and_all_hear_of_it():
    class Full(MemoryStore):
        def set(self, key, value):
            if key.endswith("/plan"):
                raise PeerError("the store is full")
            super().set(key, value)

    store, found = Full(TIMEOUT), []

    def body(comm):
        with joining(comm, store, found):
            with pytest.raises(PeerError, match=r"the store is full|see its error"):
                comm.grow()
            assert total(comm) == 2  # it is as before
            store.set = lambda *what: MemoryStore.set(store, *what)
            comm.barrier()
            with comm.grow() as more:
                assert total(more) == 3

    run_threads(2, body, store=store)
    assert len(found) == 1


class NoAdd:
    """No more than a rendezvous may ask for."""

    def __init__(self):
        store = MemoryStore(20.0)
        self.set, self.get, self.check = store.set, store.get, store.check


def test_a_store_that_cannot_add_is_named():
    def body(comm):
        for call in (comm.grow, comm.shrink):
            with pytest.raises(UsageError, match="NoAdd has no add"):
                call()

    run_threads(2, body, store=NoAdd())
    with pytest.raises(UsageError, match="NoAdd has no add"):
        Communicator.join(NoAdd())


@contextmanager
def joining(comm, store, found: list, count: int = 1, **options) -> Iterator[None]:
    """Threads of rank 0's that join meanwhile; what each has found, or its error, is in `found`."""

    def main():
        try:
            with Communicator.join(store, timeout=TIMEOUT, **options) as joined:
                found.append((joined.rank, joined.world_size, joined.node_of_rank, total(joined)))
        except Error as error:
            found.append(error)

    threads = [threading.Thread(target=main, daemon=True) for _ in range(count * (comm.rank == 0))]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join(TIMEOUT)


def torch_file(path):
    distributed = pytest.importorskip("torch.distributed")
    return distributed.FileStore(str(path / "store"), 9)


def tcp(path):
    return TcpStore("127.0.0.1", 0, True, TIMEOUT, secret=b"")


STORES = {"file": lambda path: FileStore(path, TIMEOUT), "torch": torch_file, "tcp": tcp}


@pytest.mark.parametrize("kind", STORES)
def test_stores(kind, tmp_path):
    store, found = STORES[kind](tmp_path), []

    def body(comm):
        if comm.rank == 1:
            return comm.close()
        until_error(comm)
        comm = comm.shrink()
        with joining(comm, store, found), comm.grow() as more:
            assert total(more) == 3

    run_threads(3, body, store=store)
    assert [rank for rank, *_ in found] == [2]
    if kind == "tcp":
        store.close()


@pytest.mark.parametrize("newcomers", [1, 2])
@pytest.mark.parametrize("layout", ["1x1", "1x2", "2x1", "2x2"])
def test_processes_join(layout, newcomers, tmp_path):
    store, found = FileStore(tmp_path, TIMEOUT), []

    def body(comm):
        with joining(comm, store, found, newcomers), comm.grow(newcomers) as more:
            assert more.rank == comm.rank
            assert more.world_size == comm.world_size + newcomers
            assert more.node_of_rank[: comm.world_size] == comm.node_of_rank
            # Simulated nodes: each newcomer has one of its own.
            assert more.num_nodes == comm.num_nodes + newcomers
            assert total(more) == more.world_size

    was = size(layout)
    run_threads(was, body, nodes=nodes(layout), store=store)
    assert sorted(rank for rank, *_ in found) == list(range(was, was + newcomers))
    assert all(sums == world == was + newcomers for _, world, _, sums in found)


def test_a_newcomer_shares_the_node_that_it_names_and_takes_the_options():
    store, found = MemoryStore(TIMEOUT), []

    def body(comm):
        with joining(comm, store, found, node=0), comm.grow() as more:
            assert more.node_of_rank == (0, 1, 0)
            total(more)

    run_threads(2, body, nodes=2, store=store, lanes=3, rails=np.int64(1), checksum=False)
    assert [node for _, _, node, _ in found] == [(0, 1, 0)]


def test_without_simulated_nodes_a_newcomer_is_on_the_node_of_its_host():
    store, found = MemoryStore(TIMEOUT), []

    def body(comm):
        with joining(comm, store, found), comm.grow() as more:
            assert more.num_nodes == 1
            total(more)

    run_threads(2, body, store=store)
    assert len(found) == 1


def test_nobody_comes_and_the_group_is_as_before():
    def body(comm):
        with pytest.raises(Timeout, match=r"fewer than 1 processes asked to join within 0\.2 s"):
            comm.grow(timeout=0.2)
        assert total(comm) == 3
        with pytest.raises(UsageError, match="newcomers=0"):
            comm.grow(0)

    run_threads(3, body)


def test_too_few_come_and_are_taken_in_later():
    store, found = MemoryStore(TIMEOUT), []

    def body(comm):
        with joining(comm, store, found):
            with pytest.raises(Timeout, match="fewer than 2"):
                comm.grow(2, timeout=0.3)
            assert total(comm) == 2
            with comm.grow() as more:
                assert total(more) == 3

    run_threads(2, body, store=store)
    assert [rank for rank, *_ in found] == [2]


def test_who_lost_the_group_that_the_others_grew_into_is_told_so():
    store, found, grown = MemoryStore(TIMEOUT), [], threading.Event()

    def body(comm):
        if comm.rank == 1:  # as if the last word of the start-up had not reached it
            enter = regrouping.enter
            name = f"grow/{comm._name}/1"
            comm.barrier()
            comm._grown += 1
            comm.allgather(np.array([0]))
            with enter(type(comm), comm._store, name, 1):
                grown.wait(TIMEOUT)
            with pytest.raises(AbortedError, match="the others went on without it"):
                comm.shrink()
            return
        with joining(comm, store, found), comm.grow():
            grown.set()

    run_threads(3, body, store=store)


def test_a_process_that_died_while_it_waited_costs_a_moment():
    store, found = MemoryStore(TIMEOUT), []
    joining_module._Asking(store, None)  # it has asked, and says no more

    def body(comm):
        begin = time.monotonic()
        with joining(comm, store, found), comm.grow() as more:
            assert total(more) == 3
        return time.monotonic() - begin

    took = run_threads(2, body, store=store)
    assert max(took) < TIMEOUT / 2
    assert [rank for rank, *_ in found] == [2]


def test_a_process_that_stood_still_asks_again():
    store, found = MemoryStore(TIMEOUT), []
    asking = joining_module._Asking(store, None)

    def body(comm):
        with pytest.raises(Timeout, match="fewer than 1 processes asked to join"):
            comm.grow(timeout=1.0)
        assert total(comm) == 2
        if comm.rank == 0:
            assert asking.look() is None  # it has asked under another number
            assert asking.look() is None
        comm.barrier()
        answered = threading.Thread(target=answer, args=(asking, found), daemon=True)
        if comm.rank == 0:
            answered.start()
        with comm.grow() as more:
            assert total(more) == 3
        if comm.rank == 0:
            answered.join(TIMEOUT)

    run_threads(2, body, store=store)
    assert found == [2]


def answer(asking, found: list) -> None:
    """Go on as a process that joins."""
    while not (told := asking.look()):
        time.sleep(0.01)
    with joining_module.enter(Communicator, asking._store, told["name"], told["rank"]) as joined:
        total(joined)
        found.append(joined.rank)


def test_nobody_lets_a_process_join_and_its_place_is_given_to_none():
    store, found = MemoryStore(TIMEOUT), []
    with pytest.raises(Timeout, match=r"nobody let this process join within 0\.2 s"):
        Communicator.join(store, timeout=0.2)

    def body(comm):
        with joining(comm, store, found), comm.grow() as more:
            assert total(more) == 3

    run_threads(2, body, store=store)
    assert len(found) == 1


def test_one_dies_and_another_takes_its_place_again_and_again(tmp_path):
    store = PrefixStore(FileStore(tmp_path, TIMEOUT), "job")

    def newcomer():
        comm = Communicator.join(store, timeout=TIMEOUT)
        assert total(comm) == 3
        comm.close()

    def body(comm):
        if comm.rank == 2:
            return comm.close()
        for _ in range(3):
            until_error(comm)
            comm = comm.shrink()
            assert total(comm) == 2
            if comm.rank == 0:
                threading.Thread(target=newcomer, daemon=True).start()
            comm = comm.grow()
            assert total(comm) == 3
        comm.close()

    run_threads(3, body, store=store, nodes=3)
