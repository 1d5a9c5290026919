"""From start to end of a group: who does not come, who raises, who waits and costs nothing."""

import os
import resource
import socket
import threading
import time

import numpy as np
import pytest
from group_cases import nodes, size
from worlds import SANITIZED, processes, run_processes, run_threads

import allreduce
from allreduce.communicator.communicator import Communicator
from allreduce.errors import AbortedError, Error, Timeout, UsageError
from allreduce.rendezvous.store import MemoryStore


def start(store, ranks, world_size: int, **options) -> list:
    """Start some ranks of a world; returns a communicator or an exception for each."""
    results = [None] * len(ranks)

    def main(i: int) -> None:
        try:
            results[i] = Communicator.from_store(
                store, ranks[i], world_size, measure=False, **options
            )
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=main, args=(i,)) for i in range(len(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return results


@pytest.mark.parametrize("absent", [0, 2])
@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_a_rank_that_never_comes_is_named(absent, nodes):
    ranks = [rank for rank in range(4) if rank != absent]
    begin = time.monotonic()
    errors = start(MemoryStore(1.0), ranks, 4, timeout=1.0, nodes=nodes)
    assert time.monotonic() - begin < 6.0
    for error in errors:
        assert isinstance(error, Timeout), errors
        assert f"rank {absent} never came" in str(error)


def test_ranks_come_again_after_one_never_came():
    store = MemoryStore(10.0)
    start(store, [0], 2, timeout=0.3)
    comms = start(store, [0, 1], 2, timeout=10.0, generation=1)
    assert [comm.world_size for comm in comms] == [2, 2]
    for comm in comms:
        comm.close()


def test_a_rank_that_comes_twice_is_refused():
    store = MemoryStore(1.0)
    errors = []
    first = threading.Thread(target=lambda: errors.extend(start(store, [0], 2, timeout=1.0)))
    first.start()
    while not store.check(["mesh/0/call"]):
        time.sleep(0.001)
    assert isinstance(start(store, [0], 2, timeout=2.0)[0], Timeout)
    first.join(30)
    assert isinstance(errors[0], UsageError)
    assert "another process has the same rank" in str(errors[0])


def test_a_busy_port_is_named():
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        with pytest.raises(OSError, match=str(port)) as caught:
            allreduce.init(
                rank=0, world_size=2, master_addr="127.0.0.1", master_port=port, timeout=1.0
            )
    assert isinstance(caught.value, Error)


@pytest.mark.parametrize(
    ("variables", "missing"),
    [
        ({"RANK": "0"}, "WORLD_SIZE"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}, "MASTER_PORT"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}, "RANK"),
        ({"OMPI_COMM_WORLD_RANK": "0"}, "OMPI_COMM_WORLD_SIZE"),
        ({"PMI_RANK": "0"}, "PMI_SIZE"),
        ({"SLURM_PROCID": "0"}, "SLURM_NTASKS"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_missing_variable_is_named(monkeypatch, variables, missing):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=missing):
        allreduce.init(timeout=1.0)


@pytest.mark.parametrize("layout", ["1x3", "2x1", "2x2", "4x2"])
@pytest.mark.parametrize("inside", [True, False])
def test_an_exception_in_one_rank_ends_the_others_with_its_text(layout, inside):
    def body(comm):
        with comm:
            comm.barrier()
            if comm.rank == 1:
                if not inside:
                    time.sleep(0.2)
                raise KeyError("the data set is gone")
            while True:
                comm.allreduce(np.ones(20_000), async_op=not inside)
                comm.barrier()

    begin = time.monotonic()
    errors = run_threads(size(layout), body, nodes=nodes(layout), errors=True)
    assert time.monotonic() - begin < 8.0
    for rank, error in enumerate(errors):
        if rank == 1:
            assert isinstance(error, KeyError)
        else:
            assert isinstance(error, AbortedError), errors
            assert "rank 1 raised KeyError: 'the data set is gone'" in str(error)


@pytest.mark.parametrize("layout", ["1x2", "2x1"])
@pytest.mark.parametrize("character", ["\u00e9", "\u20ac", "\U0001f600"])
@pytest.mark.parametrize("before", range(4))
def test_a_long_text_is_cut_after_a_whole_character(layout, character, before):
    def body(comm):
        if comm.rank == 1:
            with comm:
                raise KeyError("x" * before + character * 1000)
        for _ in range(3):
            with pytest.raises(AbortedError, match=character * 10):
                comm.barrier()

    errors = run_threads(size(layout), body, nodes=nodes(layout), errors=True)
    assert errors[0] is None
    assert isinstance(errors[1], KeyError)


@pytest.mark.parametrize("local", ["rs_ag", "none"])
@pytest.mark.parametrize("layout", ["1x4", "2x2", "4x2"])
def test_who_waits_for_a_late_rank_does_not_spin(layout, local):
    late = size(layout) - 2

    def body(comm):
        if comm.rank == late:
            time.sleep(1.2)
        before = time.thread_time()
        comm.allreduce(np.ones(100_000, np.float32), algo="ring")
        return time.thread_time() - before

    seconds = run_threads(size(layout), body, nodes=nodes(layout), local=local)
    assert max(seconds) < (2.0 if SANITIZED else 0.2), seconds


@pytest.mark.parametrize("algo", ["halving_doubling", "recursive_doubling", "bcube", "direct"])
@pytest.mark.parametrize("late", [1, 2])
def test_nobody_spins_whoever_is_late_between_nodes(algo, late):
    def body(comm):
        if comm.rank == late:
            time.sleep(0.6)
        before = time.thread_time()
        comm.allreduce(np.ones(100_000, np.float32), algo=algo)
        return time.thread_time() - before

    seconds = run_threads(4, body, nodes=4)
    assert max(seconds) < (2.0 if SANITIZED else 0.15), seconds


def wait_for_the_late(comm) -> float:
    comm.barrier()
    if comm.rank == 1:
        time.sleep(2.0)
    before = time.process_time()
    comm.allreduce(np.ones(100_000, np.float32), "sum", "halving_doubling", async_op=True).wait()
    return time.process_time() - before


@pytest.mark.skipif(SANITIZED, reason="processes")
@pytest.mark.parametrize("layout", ["1x3", "2x2"])
def test_a_worker_that_waits_does_not_spin(tmp_path, layout):
    outcomes = run_processes(size(layout), wait_for_the_late, tmp_path, nodes=nodes(layout))
    assert max(o.result for o in outcomes) < 0.3, outcomes


def wakes_of_other_threads(comm) -> int:
    """Blocking calls after one that the worker has driven: how often did other threads wake?"""
    import re
    import threading
    from pathlib import Path

    def wakes() -> int:
        count = 0
        for task in Path("/proc/self/task").iterdir():
            if int(task.name) != threading.get_native_id():
                status = (task / "status").read_text()
                count += int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", status, re.M)[1])
        return count

    x = np.ones(100, np.float32)
    work = comm.allreduce(x, async_op=True)
    time.sleep(0.1)  # the worker drives
    work.wait()
    before = wakes()
    for _ in range(300):
        comm.allreduce(x)
    return wakes() - before


@pytest.mark.skipif(SANITIZED, reason="processes")
def test_a_blocking_call_wakes_no_other_thread(tmp_path):
    outcomes = run_processes(2, wakes_of_other_threads, tmp_path)
    assert max(o.result for o in outcomes) < 30, outcomes


def idle(comm) -> float:
    comm.allreduce(np.ones(1000), async_op=True).wait()
    before = time.process_time()
    time.sleep(1.0)
    return time.process_time() - before


@pytest.mark.skipif(SANITIZED, reason="processes")
def test_an_idle_group_costs_nothing(tmp_path):
    outcomes = run_processes(3, idle, tmp_path, nodes=[0, 0, 1])
    assert max(o.result for o in outcomes) < 0.05, outcomes


def few_descriptors(member) -> str:
    resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))
    member.connect()
    return "connected"


@pytest.mark.skipif(SANITIZED, reason="processes")
def test_too_few_descriptors_are_an_error_in_words(tmp_path):
    with processes(4, few_descriptors, tmp_path, connect=False, nodes=4, timeout=10.0) as world:
        outcomes = world.join()
    for outcome in outcomes:
        assert outcome.error in ("SystemCallError", "PeerError"), outcomes
        assert "ulimit -n" in outcome.text


def test_groups_leave_no_descriptors_and_no_threads():
    def count() -> int:
        return len(os.listdir("/proc/self/fd")) + len(os.listdir("/proc/self/task"))

    def body(comm):
        x = comm.symmetric_empty(1000)
        comm.allreduce(x, async_op=True).wait()
        comm.split(comm.rank % 2).close()

    run_threads(4, body, nodes=2)
    before = count()
    for _ in range(5):
        run_threads(4, body, nodes=2)
    deadline = time.monotonic() + 5  # the kernel counts a joined thread for a moment
    while count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert count() <= before


@pytest.mark.parametrize("local", ["rs_ag", "none"])
def test_who_sleeps_is_woken_and_need_not_look_at_the_clock(local):
    arrived: list[float] = []
    latencies: list[float] = []

    def body(comm):
        x = np.ones(10)
        for _ in range(25):
            if comm.rank == 1:
                time.sleep(0.01)  # the other one falls asleep, for 50 ms at most
                arrived.append(time.monotonic())
            comm.allreduce(x, "max")
            if comm.rank == 0:
                latencies.append(time.monotonic() - arrived[-1])
            comm.barrier()

    run_threads(2, body, local=local)
    assert sorted(latencies)[12] < 0.02, latencies
