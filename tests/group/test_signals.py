"""Signals and forks: Ctrl-C inside a collective, a stopped rank, children that inherit a group."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time

import numpy as np
import pytest
from children import exit_code
from group_cases import nodes, size
from worlds import SANITIZED, hear, processes, run_processes, tell

from allreduce import errors

pytestmark = pytest.mark.skipif(SANITIZED, reason="processes")

CTRL_C = 4 * 0.2  # seconds; 0.2 is what is promised on a quiet machine


def block(comm, mode: str) -> None:
    comm.barrier()
    tell("blocked")
    if comm.rank == comm.world_size - 1:
        hear("go on")  # all others wait for this one
    with comm:
        if mode == "blocking":
            comm.allreduce(np.ones(1000))
        elif mode == "behind another":
            comm.allreduce(np.ones(1000), async_op=True)
            comm.allreduce(np.ones(100_000))
        else:
            comm.allreduce(np.ones(1000), async_op=True).wait()
        comm.barrier()  # what the others gave before may suffice for the last one


@pytest.mark.parametrize("layout", ["1x3", "2x2"])
@pytest.mark.parametrize("mode", ["blocking", "behind another", "wait"])
def test_ctrl_c_inside_a_collective(tmp_path, layout, mode):
    last = size(layout) - 1
    with processes(size(layout), block, tmp_path, mode, nodes=nodes(layout)) as world:
        world.wait_for("blocked")
        time.sleep(0.3)
        at = world.kill(1, signal.SIGINT)
        interrupted = world.join([1])[0]
        others = world.join([rank for rank in range(last) if rank != 1])
        world.tell("go on")
        late = world.join([last])[0]
        codes = [popen.returncode for popen in world.popens]
    assert interrupted.error == "KeyboardInterrupt"
    assert interrupted.at - at < CTRL_C
    for outcome in (*others, late):
        assert outcome.error == "AbortedError"
        assert "rank 1" in outcome.text
    assert max(o.at for o in others) - at < 4.0
    assert codes == [0] * (last + 1)


def interrupt_elsewhere(comm) -> None:
    def interrupt() -> None:
        time.sleep(0.3)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        time.sleep(5)

    comm.barrier()
    if comm.rank == 0:
        threading.Thread(target=interrupt, daemon=True).start()
        begin = time.monotonic()
        try:
            comm.allreduce(np.ones(1000))
        finally:
            assert time.monotonic() - begin < 0.3 + 4 * 0.2
    hear("over")


def test_ctrl_c_that_another_thread_receives(tmp_path):
    # It does not end a sleep in the thread that has to handle it.
    with processes(2, interrupt_elsewhere, tmp_path) as world:
        interrupted = world.join([0])[0]
        world.tell("over")
    assert interrupted.error == "KeyboardInterrupt"


def interrupt_waits(comm, n: int) -> int:
    interrupted = 0
    x = np.zeros(1000)
    for i in range(n):
        x[:] = i
        if comm.rank == 0:
            work = comm.allreduce(x, async_op=True)
            timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            try:
                work.wait()
            except KeyboardInterrupt:
                interrupted += 1
            work.wait()
            timer.join()
        else:
            time.sleep(0.2)
            comm.allreduce(x)
        assert (x == i * comm.world_size).all()
    return interrupted


@pytest.mark.parametrize("layout", ["1x2", "2x1"])
def test_work_whose_wait_ctrl_c_has_ended_goes_on(tmp_path, layout):
    outcomes = run_processes(2, interrupt_waits, tmp_path, 10, nodes=nodes(layout))
    assert outcomes[0].result == 10


def count_to(comm, n: int) -> float:
    x = np.ones(50_000)
    for i in range(n):
        if i == n // 4:
            tell("going")
        x[:] = 1
        comm.allreduce(x)
    return float(x.sum())


@pytest.mark.parametrize("layout", ["1x2", "2x2"])
def test_a_rank_may_be_stopped_for_a_while(tmp_path, layout):
    p = size(layout)
    with processes(p, count_to, tmp_path, 400, nodes=nodes(layout)) as world:
        world.wait_for("going")
        world.kill(1, signal.SIGSTOP)
        time.sleep(1.0)
        world.kill(1, signal.SIGCONT)
        outcomes = world.join()
    assert [o.result for o in outcomes] == [50_000.0 * p] * p


def handle_signals(comm) -> list:
    seen = []
    signal.signal(signal.SIGUSR1, lambda *_: seen.append(time.monotonic()))
    tell("ready")
    if comm.rank == 0:
        hear("go on")
    comm.allreduce(np.ones(10))
    return [len(seen), time.monotonic() - seen[0] if seen else 0]


def test_other_signals_are_handled_while_it_waits(tmp_path):
    with processes(2, handle_signals, tmp_path) as world:
        world.wait_for("ready")
        time.sleep(0.2)
        world.kill(1, signal.SIGUSR1)
        time.sleep(1.0)
        world.tell("go on")
        outcomes = world.join()
    assert outcomes[1].result[0] == 1
    assert outcomes[1].result[1] > 0.5  # not only at the end


def exit_code_of_child(body) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            code = body() or 0
        except BaseException:
            code = 99
        os._exit(code)
    return exit_code(pid)


def use(comm) -> int:
    """How many calls are not refused as they should be."""

    def accepted(call) -> int:
        try:
            call()
        except errors.UsageError as error:
            return int("forked" not in str(error))
        return 1

    return (
        accepted(comm.barrier)
        + accepted(lambda: comm.allreduce(np.ones(4)))
        + accepted(lambda: comm.allreduce(np.ones(4), async_op=True))
    )


def speak_to_the_wrong_ones(comm) -> int:
    """Whether a group that ends in the child writes to what has taken its numbers."""
    pairs = [socket.socketpair() for _ in range(40)]
    with contextlib.suppress(ValueError), comm:
        raise ValueError("of the child")
    with contextlib.suppress(ValueError):  # it is refused
        comm.abort("once more")
    comm.close()
    got = 0
    for pair in pairs:
        for end in pair:
            end.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                got += len(end.recv(4096))
    return int(got > 0)


def hold(_comm) -> int:
    """How many sockets and doorbells of its parent's the child has."""
    held = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            link = os.readlink(f"/proc/self/fd/{fd}")
            held += link.startswith(("socket:", "anon_inode:[eventfd]"))
    return held


def close(comm) -> None:
    comm.close()


def fork_children(comm) -> list[int]:
    """Exit codes of children that do all that a child should not."""
    comm.allreduce(np.ones(10), async_op=True).wait()  # there is a worker thread
    codes = []
    for body in (use, close, speak_to_the_wrong_ones, hold):
        codes.append(exit_code_of_child(lambda: body(comm)) if comm.rank == 1 else 0)  # noqa: B023
        x = comm.allreduce(np.ones(1000))  # the parent's group is as it was
        assert float(x[0]) == comm.world_size
    return codes


def collect_in_child(comm) -> int:
    import gc

    tell("forking")
    pid = os.fork()
    if pid == 0:
        del comm
        gc.collect()
        sys.exit(0)  # runs atexit and the destructors
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    comm.barrier()
    return code


@pytest.mark.parametrize("layout", ["1x2", "2x2"])
def test_forked_children_keep_out(tmp_path, layout):
    p = size(layout)
    helpers = (exit_code, exit_code_of_child, use, close, speak_to_the_wrong_ones, hold)
    outcomes = run_processes(p, fork_children, tmp_path, helpers=helpers, nodes=nodes(layout))
    assert [o.result for o in outcomes] == [[0] * 4] * p


def test_a_forked_child_exits_in_peace(tmp_path):
    outcomes = run_processes(2, collect_in_child, tmp_path)
    assert [o.result for o in outcomes] == [0, 0]
