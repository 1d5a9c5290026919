"""Messages and ranks that leave, die, are interrupted or fork."""

import contextlib
import os
import signal
import threading
import time

import numpy as np
import pytest
from group_cases import nodes
from worlds import SANITIZED, hear, processes, run_threads, tell

from allreduce import errors
from allreduce.errors import PeerError

SOON = 8.0  # seconds
CTRL_C = 4 * 0.2  # as in test_signals
LIMIT = 128 << 10  # bytes; larger messages are announced
PAIRS = ("1x2", "2x1")
processes_only = pytest.mark.skipif(SANITIZED, reason="processes")


@pytest.mark.parametrize("how", ["left", "large"])
@pytest.mark.parametrize("layout", ["1x3", "3x1", "2+1"])
def test_messages_of_a_rank_that_has_closed_can_still_be_received(layout, how):
    closed, received = threading.Event(), threading.Event()

    def body(comm):
        if comm.rank == 1:
            for i in range(10):
                comm.send(np.full(100, i), 0, tag=i)
            comm.close()
            closed.set()
            return
        if comm.rank == 0:
            assert closed.wait(20)
            for i in reversed(range(10)):
                x = np.empty(100, np.int64)
                assert comm.recv(x, 1 if i % 2 else None, tag=i) == (1, i)
                assert (x == i).all()
            comm.send(np.ones(3), 2)  # the others go on
            assert received.wait(20)  # the error below ends the calls of all
            with pytest.raises(PeerError, match=r"rank 1 (left|has probably died)") as caught:
                comm.recv(x, 1) if how == "left" else comm.send(np.zeros(LIMIT), 1)
            assert caught.value.rank == 1
        else:
            comm.recv(np.ones(3), 0)
            received.set()

    begin = time.monotonic()
    run_threads(3, body, nodes=nodes(layout))
    assert time.monotonic() - begin < SOON


@pytest.mark.parametrize("layout", ["1x3", "3x1", "2+1"])
def test_a_receive_from_any_rank_fails_only_when_all_others_are_gone(layout):
    turn = [threading.Event() for _ in range(3)]

    def body(comm):
        comm.barrier()
        if comm.rank == 1:
            comm.close()
            turn[1].set()
        elif comm.rank == 2:
            assert turn[1].wait(20)
            time.sleep(0.2)  # rank 0 waits, and one has left
            comm.send(np.ones(1), 0)
        else:
            comm.recv(np.ones(1))
            with pytest.raises(PeerError, match=r"rank [12] left .*recv.*from any rank"):
                comm.recv(np.ones(1), timeout=15.0)

    begin = time.monotonic()
    run_threads(3, body, nodes=nodes(layout))
    assert time.monotonic() - begin < SOON


def die(comm, how: str) -> None:
    x = np.zeros(8 << 20, np.uint8)
    comm.barrier()
    if comm.rank == 1:
        if how == "large":  # in the middle of it
            comm.isend(x, 0)
        tell("ready")
        if how == "large":
            hear("sent")
        time.sleep(60)
    if comm.rank == 0 and how == "large":
        hear("sent")
    if comm.rank == 0 and how == "send":
        comm.send(x, 1)
    elif comm.rank == 0:
        comm.recv(x, 1)
    comm.barrier()


@processes_only
@pytest.mark.parametrize("how", ["recv", "send", "large"])
@pytest.mark.parametrize("layout", ["1x3", "3x1"])
def test_who_waits_for_a_rank_that_dies_hears_of_it(tmp_path, layout, how):
    with processes(3, die, tmp_path, how, nodes=nodes(layout)) as world:
        world.wait_for("ready", [1])
        time.sleep(0.2)
        at = world.kill(1)
        world.tell("sent")
        outcomes = world.join([0, 2])
        assert [world.popens[rank].returncode for rank in (0, 2)] == [0, 0]
    assert [(o.error, o.culprit) for o in outcomes] == [("PeerError", 1)] * 2
    assert max(o.at for o in outcomes) - at < SOON


def wait_for_ever(comm, what: str) -> None:
    x, peer = np.zeros(100_000), 1 - comm.rank
    comm.barrier()
    if comm.rank == 1:
        tell("waiting")
        with contextlib.suppress(errors.Error):
            comm.recv(x, 0, tag=77)
        return
    with comm:
        tell("waiting")
        if what == "wait":
            comm.irecv(x, peer).wait()
        elif what == "behind a thread":
            other = threading.Thread(target=lambda: comm.recv(x, peer, 8), daemon=True)
            other.start()
            time.sleep(0.1)
            comm.recv(x, peer)
        else:
            getattr(comm, what)(x, peer)


@processes_only
@pytest.mark.parametrize("what", ["recv", "send", "wait", "behind a thread"])
@pytest.mark.parametrize("layout", PAIRS)
def test_ctrl_c_ends_a_wait_for_a_message(tmp_path, layout, what):
    with processes(2, wait_for_ever, tmp_path, what, nodes=nodes(layout)) as world:
        world.wait_for("waiting")
        time.sleep(0.3)
        at = world.kill(0, signal.SIGINT)
        interrupted, other = world.join()
        assert [popen.returncode for popen in world.popens] == [0, 0]
    assert interrupted.error == "KeyboardInterrupt"
    assert interrupted.at - at < CTRL_C
    assert other.error == ""
    assert other.at - at < SOON


def refuse_in_a_child(comm) -> list:
    x = np.zeros(3)
    work = comm.irecv(x, 1 - comm.rank)
    pid = os.fork()
    if pid == 0:
        accepted = 4
        for call in (comm.send, comm.isend, comm.recv, comm.irecv):
            with contextlib.suppress(errors.UsageError):
                call(x, 1 - comm.rank)
                os._exit(99)
            accepted -= 1
        os._exit(accepted)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    comm.send(np.ones(3), 1 - comm.rank)
    work.wait()
    comm.barrier()
    return [code, float(x.sum())]


@processes_only
def test_a_forked_child_sends_nothing(tmp_path):
    with processes(2, refuse_in_a_child, tmp_path, nodes=[0, 1]) as world:
        outcomes = world.join()
    assert [o.result for o in outcomes] == [[0, 3.0]] * 2, outcomes
