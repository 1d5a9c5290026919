"""Groups that lose ranks and go on."""

import contextlib
import os
import signal
import threading
import time

import numpy as np
import pytest
from group_cases import nodes, size, total, until_error
from worlds import TIMEOUT, run_processes, run_threads

import allreduce
from allreduce.errors import AbortedError, PeerError
from allreduce.rendezvous.mesh_builder import MeshBuilder
from allreduce.rendezvous.store import PrefixStore, add

LAYOUTS = ["1x4", "2x2", "3+1+2"]
SOON = TIMEOUT / 2  # seconds; to wait for those who have gone would take all of it


@pytest.mark.parametrize("connect", ["all", "needed"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("gone", [{0}, {1}, {0, 2}])
def test_those_who_are_left_go_on(layout, gone, connect):
    def body(comm):
        if comm.rank in gone:
            return total(comm)
        assert isinstance(until_error(comm), PeerError)
        begin = time.monotonic()
        with comm.shrink() as fewer:
            took = time.monotonic() - begin
            assert fewer.world_size == comm.world_size - len(gone)
            assert total(fewer) == fewer.world_size
            names = fewer.allgather(np.array([comm.rank])).tolist()
            assert names == sorted({*range(comm.world_size)} - gone)
            same_node = [comm.node_of_rank[a] == comm.node_of_rank[names[0]] for a in names]
            assert [n == fewer.node_of_rank[0] for n in fewer.node_of_rank] == same_node
        return took < SOON

    results = run_threads(size(layout), body, nodes=nodes(layout), connect=connect)
    assert all(took for rank, took in enumerate(results) if rank not in gone)


def test_nobody_has_gone():
    def body(comm):
        if comm.rank == 1:
            comm.abort("for a test")
        until_error(comm)
        with comm.shrink() as same:
            assert (same.rank, same.world_size) == (comm.rank, comm.world_size)
            assert total(same) == 3

    run_threads(3, body)


def test_again_and_again_down_to_one_rank():
    def body(comm):
        while comm.world_size > 1:
            if comm.rank == comm.world_size - 1:
                return comm.close()
            until_error(comm)
            comm = comm.shrink()
        assert total(comm) == 1
        comm.close()

    run_threads(4, body, nodes=2)


def test_a_rank_that_comes_too_late_is_told_so():
    gone_on, together = threading.Barrier(3), threading.Barrier(2)

    def body(comm):
        if comm.rank == 0:
            comm.abort("for a test")
        until_error(comm)
        if comm.rank == 1:
            gone_on.wait(TIMEOUT)
            with pytest.raises(AbortedError, match=r"rank 1 came too late: .* went on without it"):
                comm.shrink()
            return
        together.wait(TIMEOUT)
        with comm.shrink(timeout=2.0) as fewer:
            gone_on.wait(TIMEOUT)
            assert total(fewer) == 2

    run_threads(3, body)


@pytest.mark.parametrize("dies", ["before it says who is here", "when all have agreed"])
def test_one_more_dies_while_they_agree(dies):
    def body(comm):
        if comm.rank == 0:
            return comm.close()
        until_error(comm)
        if comm.rank == 1:
            place = PrefixStore(comm._store, f"shrink/{comm._name}/1")
            if dies == "when all have agreed":
                comm._agree_who_is_here(place, time.monotonic() + TIMEOUT)
            else:
                place.set("says/1", b"perhaps")
                add(place, "said", 1)
                place.set("here/1", b"")
            return comm.close()
        begin = time.monotonic()
        with comm.shrink() as fewer:
            assert fewer.world_size == 2
            assert total(fewer) == 2
        return time.monotonic() - begin

    results = run_threads(4, body, nodes=2)
    assert all(took < SOON for took in results[2:])


@pytest.mark.parametrize("nodes", [1, 5])
def test_a_rank_that_hears_late_that_all_are_connected_is_not_lost(nodes, monkeypatch):
    take_go = MeshBuilder._take_go

    def late(builder, link):
        if (builder._world_size, builder._rank) == (4, 2):  # others wait for it, below it in a tree
            time.sleep(1.2)
        take_go(builder, link)

    monkeypatch.setattr(MeshBuilder, "_take_go", late)

    def body(comm):
        if comm.rank != 0:
            until_error(comm)
            with comm.shrink() as fewer:
                return total(fewer)

    assert run_threads(5, body, nodes=nodes) == [None, 4, 4, 4, 4]


def shrink_and_die(comm, where: str) -> float:
    """Rank 0 is killed in a call, rank 1 while the others shrink; returns the seconds of that."""
    import pkgutil

    def die(*_args: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if comm.rank == 0:
        die()
    with contextlib.suppress(allreduce.PeerError):
        while True:
            comm.allreduce(np.ones(4))
    begin = time.monotonic()
    if comm.rank == 1:
        owner, _dot, name = where.rpartition(".")
        setattr(pkgutil.resolve_name(owner), name, die)
    with comm.shrink() as fewer:
        assert fewer.world_size == 2
        assert fewer.allreduce(np.ones(4))[0] == 2
    return time.monotonic() - begin


@pytest.mark.parametrize("nodes", [1, 2, 4])
@pytest.mark.parametrize(
    "where",
    [
        "allreduce.communicator.communicator.Communicator._agree_who_is_here",
        "allreduce.communicator.communicator.Communicator._make_of",
        "allreduce.rendezvous.startup.Startup.allocate",
        "allreduce.rendezvous.mesh_builder.MeshBuilder.run",
        "allreduce.rendezvous.mesh_builder.MeshBuilder._release",
    ],
)
def test_one_more_is_killed_while_they_shrink(tmp_path, where: str, nodes: int) -> None:
    outcomes = run_processes(4, shrink_and_die, tmp_path, where, nodes=nodes, errors=True)
    assert [outcome.error for outcome in outcomes[2:]] == ["", ""], outcomes
    assert all(outcome.result < SOON for outcome in outcomes[2:]), outcomes


def test_who_lost_the_group_that_the_others_made_is_told_so():
    made = threading.Event()

    def body(comm):
        if comm.rank == 0:
            return comm.close()
        until_error(comm)
        if comm.rank == 1:  # as if the last word of the start-up had not reached it
            place = PrefixStore(comm._store, f"shrink/{comm._name}/1")
            members = comm._agree_who_is_here(place, time.monotonic() + TIMEOUT)
            with comm._make_of(place, members):
                comm._attempt = 2
                made.wait(TIMEOUT)
                with pytest.raises(AbortedError, match="the others went on without it"):
                    comm.shrink()
            return
        with comm.shrink() as fewer:
            made.set()
            assert isinstance(until_error(fewer), PeerError)  # it left

    run_threads(3, body)


def test_a_closed_one_is_not_shrunk():
    def body(comm):
        comm.close()
        with pytest.raises(AbortedError, match="shrink: this communicator is closed"):
            comm.shrink()

    run_threads(2, body)
