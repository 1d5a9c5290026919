"""Hosts that go without a word: a pulled cable, a host that hears nothing or is not heard.

And ranks that only compute, for longer than a dead host may be silent: nobody declares them dead.
"""

import os
import signal
import threading
import time

import numpy as np
import pytest
from cables import IFACE, WAYS, connected
from worlds import SANITIZED, hear, processes, tell

from allreduce import errors
from allreduce.errors import UsageError
from allreduce.rendezvous.address import dead_after_option

pytestmark = pytest.mark.skipif(SANITIZED, reason="processes")

HOST_OF_RANK = [0, 0, 1, 2]
CUT = 2  # the host, that of rank 3
SOON = 20.0  # seconds: four times the promise, for a busy machine


def collective(comm) -> None:
    while True:
        comm.allreduce(np.ones(300_000, np.float32), "max")


def broadcast(comm) -> None:
    while True:
        comm.broadcast(np.ones(300_000, np.float32), 3)


def message(comm) -> None:
    x = np.ones(300_000)
    if comm.rank == 0:
        comm.recv(x, 3)  # rank 3 has nothing to send
    elif comm.rank == 3:
        comm.recv(x, 0)
    elif comm.rank == 2:
        comm.send(x, 3)  # and takes nothing
    else:
        comm.recv(x, 0)  # a neighbour alone is needed


def idle(comm) -> None:
    hear("later")
    comm.barrier()


def wait_in_all(member) -> list:
    """Wait in one group for each way to wait; what came of it, and when."""
    heard = []

    def wait(comm, way) -> None:
        try:
            way(comm)
        except errors.Error as error:
            culprit = getattr(error, "rank", -1)
            heard.append([way.__name__, str(error), culprit, time.monotonic()])

    ways = (collective, broadcast, message, idle)
    comms = [member.connect(generation=generation) for generation in range(len(ways))]
    for comm in comms:
        comm.barrier()
    threads = [threading.Thread(target=wait, args=pair) for pair in zip(comms, ways, strict=True)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    tell("waiting")
    for thread in threads:
        thread.join()
    return heard


def check_words(how: str, rank: int, culprit: int, text: str) -> None:
    """Rank 3 misses the others, and the others miss rank 3."""
    one_way = how in ("hears nothing", "is not heard")
    # Where one end still hears the other, it also hears what that one thinks: that it is gone.
    assert rank == 3 or culprit == 3 or (one_way and "[reported by rank 3]" in text), text
    silent = f"{os.uname().nodename}, the host of rank {culprit}, has not answered for 4.0 s"
    ends = [silent, *([f"rank {culprit} "] if one_way else [])]
    assert any(end in text for end in ends), text


@pytest.mark.parametrize("how", WAYS)
def test_a_host_that_goes_without_a_word_ends_everything(tmp_path, record_property, how):
    with (
        connected(3) as hosts,
        processes(
            4,
            wait_in_all,
            tmp_path,
            connect=False,
            env={"ALLREDUCE_IFACE": IFACE},
            helpers=(collective, broadcast, message, idle),
            before=lambda rank: hosts.command(HOST_OF_RANK[rank]),
            timeout=120.0,
        ) as world,
    ):
        world.wait_for("waiting")
        at = time.monotonic()
        WAYS[how](hosts, CUT)
        time.sleep(6.0)
        world.tell("later")
        later = time.monotonic()
        outcomes = world.join()
    longest = {"in a call": 0.0, "at the next call": 0.0}
    for outcome in outcomes:
        assert outcome.error == "", outcome
        assert len(outcome.result) == 4, outcome
        for way, text, culprit, when in outcome.result:
            check_words(how, outcome.rank, culprit, text)
            kind, begin = ("at the next call", later) if way == "idle" else ("in a call", at)
            longest[kind] = max(longest[kind], when - begin)
    record_property("seconds", {kind: round(seconds, 2) for kind, seconds in longest.items()})
    assert max(longest.values()) < SOON, longest


def compute_long(comm, what: str) -> list:
    x = np.full(8 << 20, comm.rank + 1, np.int64)  # 64 MiB: more than sockets hold
    comm.barrier()
    tell("ready")
    if comm.rank == 1:
        hear("computed")
    if what == "broadcast":
        comm.broadcast(x, 0)
    elif what == "message" and comm.rank == 0:
        comm.send(x, 1)
    elif what == "message":
        comm.recv(x, 0)
    elif what == "small message" and comm.rank == 0:
        for _ in range(30):
            comm.send(x[: 4 << 10], 1)
    elif what == "small message":
        for _ in range(30):
            comm.recv(x[: 4 << 10], 0)
    else:
        comm.allreduce(x)
    comm.barrier()
    return [int(x[0]), int(x[-1])]


@pytest.mark.parametrize("stopped", [True, False])
@pytest.mark.parametrize("what", ["allreduce", "broadcast", "message", "small message"])
def test_a_rank_that_computes_for_longer_is_not_dead(tmp_path, what, stopped):
    # It reads nothing for thrice the time: its windows are full, and its kernel answers.
    with processes(2, compute_long, tmp_path, what, nodes=2, dead_after=2) as world:
        world.wait_for("ready")
        if stopped:
            world.kill(1, signal.SIGSTOP)
        time.sleep(6.0)
        if stopped:
            world.kill(1, signal.SIGCONT)
        world.tell("computed")
        outcomes = world.join()
    small = "small" in what
    expected = {"allreduce": [3, 3]}.get(what, [1, 2 if small else 1])
    assert [o.error for o in outcomes] == ["", ""], outcomes
    assert outcomes[1].result == expected


@pytest.mark.parametrize(
    ("seconds", "environ", "result"),
    [
        (None, {}, 4.0),
        (7, {}, 7.0),
        (7, {"ALLREDUCE_DEAD_AFTER": "9"}, 7.0),
        (None, {"ALLREDUCE_DEAD_AFTER": "9.5"}, 9.5),
        (1, {}, r"dead_after=1: must be a number of seconds from 2 to 86400"),
        (float("nan"), {}, "dead_after=nan"),
        (None, {"ALLREDUCE_DEAD_AFTER": "soon"}, "ALLREDUCE_DEAD_AFTER=soon"),
    ],
)
def test_the_limit_is_an_option(seconds, environ, result):
    if isinstance(result, str):
        with pytest.raises(UsageError, match=result):
            dead_after_option(seconds, environ)
    else:
        assert dead_after_option(seconds, environ) == result
