"""What the system refuses after the start: threads, descriptors, memory."""

import contextlib
import os
import resource
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from worlds import SANITIZED, hear, processes, run_processes, tell

from allreduce import errors

pytestmark = pytest.mark.skipif(SANITIZED, reason="processes")


@contextlib.contextmanager
def no_more_threads() -> Iterator[None]:
    """Root has no such limit, so root is another user meanwhile."""
    root, (soft, hard) = os.getuid() == 0, resource.getrlimit(resource.RLIMIT_NPROC)
    if root:
        os.setresuid(12345, 12345, 0)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, hard))
    try:
        yield
    finally:
        if root:
            os.setresuid(0, 0, 0)
        resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))


def call_without_threads(comm) -> list:
    def refused(call) -> bool:
        try:
            call()
        except errors.SystemCallError as error:
            return "ulimit -u" in str(error) and error.errno == 11
        return False

    other, x, y = 1 - comm.rank, np.ones(1000), np.zeros(1000)
    with no_more_threads():
        answers = [
            refused(lambda: comm.allreduce(np.full(1_000_000, 7.0), async_op=True)),
            refused(lambda: comm.isend(np.ones(10), other)),
            refused(lambda: comm.irecv(np.ones(10), other)),
        ]
        # Nothing of them is under way, and a call that this thread drives needs no other.
        answers.append(float(comm.allreduce(x)[0]) == 2.0)
        if comm.rank == 0:
            comm.send(x, other)
        else:
            comm.recv(y, other)
            answers.append(float(y[0]) == 2.0)
    answers.append(float(comm.allreduce(np.ones(10), async_op=True).wait()[0]) == 2.0)
    comm.barrier()
    return answers


@pytest.mark.parametrize("nodes", [[0, 0], [0, 1]], ids=["1x2", "2x1"])
def test_an_asynchronous_call_that_finds_no_thread_is_refused_and_leaves_nothing(tmp_path, nodes):
    helpers = (no_more_threads,)
    outcomes = run_processes(2, call_without_threads, tmp_path, helpers=helpers, nodes=nodes)
    assert all(all(o.result) for o in outcomes), outcomes


def call_beside_another(comm) -> str:
    begin, answer = threading.Event(), []

    def second() -> None:
        begin.wait()
        try:
            comm.allreduce(np.ones(10))  # somebody must go on with it when the first has ended
        except errors.SystemCallError as error:
            answer.append(str(error))

    thread = threading.Thread(target=second)
    thread.start()
    first = threading.Thread(target=lambda: comm.allreduce(np.ones(1000)))
    if comm.rank == 0:
        first.start()
        time.sleep(0.3)
        with no_more_threads():
            begin.set()
            thread.join()
        tell("refused")
        first.join()
    else:
        hear("go on")
        comm.allreduce(np.ones(1000))
        begin.set()
        thread.join()
    return "".join(answer)


def test_a_call_beside_one_that_another_thread_drives_is_refused_too(tmp_path):
    with processes(2, call_beside_another, tmp_path, helpers=(no_more_threads,)) as world:
        world.wait_for("refused", [0])
        world.tell("go on")
        first = world.join([0])[0]
    assert "cannot start the thread" in first.result, first


@contextlib.contextmanager
def no_more_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(highest)]  # no gap below stays free
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(held) + 1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in held:
            os.close(fd)


def allocate_without_descriptors(comm, victim: int) -> list:
    text = ""
    try:
        with no_more_descriptors() if comm.rank == victim else contextlib.nullcontext():
            comm.symmetric_empty(1000)
    except errors.Error as error:
        text = f"{type(error).__name__}: {error}"
    x = comm.allreduce(np.ones(10))
    return [text, float(x[0])]


@pytest.mark.parametrize("victim", [0, 1])
def test_symmetric_memory_without_descriptors_is_an_error_of_this_call_alone(tmp_path, victim):
    helpers = (no_more_descriptors,)
    outcomes = run_processes(2, allocate_without_descriptors, tmp_path, victim, helpers=helpers)
    assert "SystemCallError" in outcomes[victim].result[0], outcomes
    assert [o.result[1] for o in outcomes] == [2.0, 2.0]


def receive_without_memory(comm) -> str:
    message = np.ones(100_000, np.uint8)
    comm.allreduce(np.ones(10), async_op=True).wait()  # the worker is there
    if comm.rank == 0:
        with open("/proc/self/statm") as statm:
            pages = int(statm.read().split()[0])
        limit = pages * resource.getpagesize() + (1 << 16)
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
        try:
            comm.recv(np.zeros(1), 1, tag=9)  # all that comes before is set aside
        except BaseException as error:
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
            return type(error).__name__
        return "none"
    try:
        works = [comm.isend(message, 0, tag=i % 8) for i in range(100)]
        for work in works:
            work.wait()
    except errors.Error as error:
        return type(error).__name__
    return "none"


@pytest.mark.parametrize("nodes", [[0, 0], [0, 1]], ids=["1x2", "2x1"])
def test_memory_that_runs_out_while_driving_ends_the_group_on_every_rank(tmp_path, nodes):
    outcomes = run_processes(2, receive_without_memory, tmp_path, nodes=nodes)
    assert outcomes[0].result in ("MemoryError", "AbortedError"), outcomes
    assert outcomes[1].result in ("AbortedError", "PeerError"), outcomes
