"""Ranks that die: every survivor hears soon who it was, and nothing remains of anybody.

The bodies run in processes of their own; what they use is imported there too (see worlds).
"""

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from group_cases import nodes, size
from worlds import SANITIZED, hear, processes, run_processes, tell

from allreduce import errors

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(SANITIZED, reason="processes")

DEADLINE = 8.0  # seconds from a death to the last survivor's error


def reduce_for_ever(comm, async_op: bool, child: str, victim: int) -> None:
    if comm.rank == victim and child == "fork" and os.fork() == 0:
        time.sleep(60)  # holds whatever it has inherited
        os._exit(0)
    if comm.rank == victim and child == "subprocess":
        subprocess.Popen(["sleep", "60"], close_fds=False)
    arrays = [np.ones(count, np.float32) for count in (8, 5000, 300_000)]
    for i in range(10**9):
        works = []
        try:
            works.extend(comm.allreduce(x, "max", async_op=async_op) for x in arrays)
        finally:  # where a call is refused because an earlier one has failed, that has the reason
            for work in works if async_op else ():
                work.wait()
        if i == 2:
            tell("running")


def read_each_other_for_ever(comm) -> None:
    x = comm.symmetric_empty(1 << 18)
    for i in range(10**9):
        comm.reduce_scatter(x, "max", in_place=True)
        comm.allgather(x, in_place=True)
        if i == 2:
            tell("running")


@pytest.mark.parametrize("victim", [0, 2])
def test_survivors_whose_memory_a_killed_rank_read_name_it(tmp_path, victim):
    survivors = [rank for rank in range(4) if rank != victim]
    with processes(4, read_each_other_for_ever, tmp_path) as world:
        world.wait_for("running")
        time.sleep(random.random() * 0.1)
        killed = world.kill(victim)
        outcomes = world.join(survivors, timeout=30.0)
    assert [(o.error, o.culprit) for o in outcomes] == [("PeerError", victim)] * 3
    assert max(o.at for o in outcomes) - killed < DEADLINE


@pytest.mark.parametrize(
    ("layout", "local", "async_op", "child", "victim"),
    [
        ("1x2", "rs_ag", False, "", 0),
        ("1x4", "rs_ag", True, "", 1),
        ("1x3", "none", False, "fork", 2),
        ("2x1", "rs_ag", True, "fork", 1),
        ("3x1", "rs_ag", False, "subprocess", 0),
        ("2x2", "rs_ag", False, "fork", 3),
        ("2x2", "reduce_bcast", True, "", 2),
        ("3+1+2", "rs_ag", False, "", 3),
    ],
)
def test_survivors_of_kill_9_name_the_dead(
    tmp_path, record_property, layout, local, async_op, child, victim
):
    p = size(layout)
    survivors = [rank for rank in range(p) if rank != victim]
    with processes(
        p, reduce_for_ever, tmp_path, async_op, child, victim, nodes=nodes(layout), local=local
    ) as world:
        world.wait_for("running")
        time.sleep(random.random() * 0.1)
        killed = world.kill(victim)
        outcomes = world.join(survivors, timeout=30.0)
        codes = [world.popens[rank].returncode for rank in survivors]
    assert [(o.error, o.culprit) for o in outcomes] == [("PeerError", victim)] * len(survivors)
    for outcome in outcomes:
        assert f"rank {victim}" in outcome.text
        assert "allreduce(float32[" in outcome.text
    seconds = max(o.at for o in outcomes) - killed
    record_property("seconds until the last survivor knew", f"{seconds:.2f}")
    assert seconds < DEADLINE
    assert codes == [0] * len(survivors)  # nobody called terminate


def die_idle(comm) -> None:
    comm.barrier()
    if comm.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    hear("dead")
    for _ in range(3):
        comm.allreduce(np.ones(1000))


@pytest.mark.parametrize("layout", ["1x3", "2x2"])
def test_a_death_between_collectives_is_told_at_the_next(tmp_path, layout):
    survivors = [rank for rank in range(size(layout)) if rank != 1]
    with processes(size(layout), die_idle, tmp_path, nodes=nodes(layout)) as world:
        world.popens[1].wait(30)
        begin = time.monotonic()
        world.tell("dead")
        outcomes = world.join(survivors)
    assert [(o.error, o.culprit) for o in outcomes] == [("PeerError", 1)] * len(survivors)
    assert max(o.at for o in outcomes) - begin < DEADLINE


def rebuild(member) -> float:
    comm = member.connect(generation=0)
    if member.rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    with contextlib.suppress(errors.PeerError):
        for _ in range(100):
            comm.allreduce(np.ones(1000))
    comm.close()
    again = type(member)(
        rank=member.rank, world_size=2, store=member.store, options=member.options
    ).connect(generation=1)
    return float(again.allreduce(np.ones(5))[0])


def test_survivors_make_a_new_group_on_the_same_store(tmp_path):
    with processes(3, rebuild, tmp_path, connect=False) as world:
        outcomes = world.join([0, 1])
    assert [o.result for o in outcomes] == [2.0, 2.0]


def targets_of(pid: int) -> set[str]:
    """What a process's descriptors lead to."""
    targets = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            targets.add(os.readlink(fd))
    return targets


def inodes_of(pid: int) -> set[str]:
    """The inodes of a process's sockets."""
    return {link[8:-1] for link in targets_of(pid) if link.startswith("socket:[")}


def named_files_of(pid: int) -> set[str]:
    """What a process has mapped or opened where files of a crashed one would stay."""
    paths = {line.split(maxsplit=5)[5] for line in mapped_lines(pid)} | targets_of(pid)
    paths = {path for path in paths if not path.startswith((str(ROOT), sys.prefix))}  # the code
    return {path for path in paths if path.startswith(("/dev/shm", "/tmp", "/var/tmp", "/run"))}


def mapped_lines(pid: int) -> list[str]:
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return [line for line in lines if len(line.split(maxsplit=5)) == 6]


def listeners(inodes: set[str]) -> list[str]:
    """TCP and Unix listeners among the sockets."""
    found = []
    for table in ("tcp", "tcp6"):
        for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = row.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.append(f"{table} {fields[1]}")
    for row in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = row.split()
        if int(fields[3], 16) & 0x10000 and fields[6] in inodes:  # it accepts connections
            found.append(" ".join(fields))
    return found


def hold_everything(comm) -> None:
    x = comm.symmetric_empty(100_000)
    tell("up")
    while True:
        comm.allreduce(x, async_op=True).wait()
        comm.allreduce(np.ones(300_000, np.float32))


def test_nothing_remains_of_ranks_that_are_killed(tmp_path):
    with processes(4, hold_everything, tmp_path, nodes=2) as world:
        world.wait_for("up")
        for pid in world.pids:
            # No name to leave behind: neither a file nor a socket that somebody could find.
            assert {p for p in named_files_of(pid) if str(tmp_path) not in p} == set()
            inodes = inodes_of(pid)
            assert inodes
            assert listeners(inodes) == []
        for rank in range(4):
            world.kill(rank)
        world.join()
        assert not any(Path(f"/proc/{pid}").exists() for pid in world.pids)
    # The key under which attempts to start are called out stays. It names none: a bare seal.
    (left,) = (tmp_path / "store").iterdir()
    assert len(left.read_bytes()) == hashlib.sha256().digest_size


def leave(comm, how: str) -> None:
    for _ in range(3):
        comm.allreduce(np.ones(1000))
    if comm.rank == 1:
        if how == "async":
            comm.allreduce(np.ones(300_000), async_op=True)  # never waited for
        if how == "thread":
            threading.Thread(target=comm.barrier, daemon=True).start()
            time.sleep(0.1)
        if how == "os._exit":
            os._exit(0)
        if how == "error":
            raise ValueError("of its own")
        sys.exit(0)
    comm.allreduce(np.ones(1000))
    for _ in range(3):
        comm.barrier()


@pytest.mark.parametrize("how", ["sys.exit", "os._exit", "error", "async", "thread"])
@pytest.mark.parametrize("layout", ["1x2", "2x1"])
def test_a_rank_that_exits_without_closing_is_named(tmp_path, layout, how):
    with processes(size(layout), leave, tmp_path, how, close=False, nodes=nodes(layout)) as world:
        survivor = world.join([0])[0]
        assert world.popens[1].wait(20) == 0
        assert world.popens[0].returncode == 0
    assert survivor.error in ("PeerError", "AbortedError", "MismatchError"), survivor
    assert "rank 1" in survivor.text


def close_early(comm) -> str:
    x = np.ones(200_000)
    comm.allreduce(x)
    if comm.rank % 2:
        return "closed"  # the others may still be reading what this rank has sent
    time.sleep(0.3)
    return str(x[-1])


@pytest.mark.parametrize("layout", ["1x4", "2x2", "4x2"])
def test_who_closes_first_disturbs_nobody(tmp_path, layout):
    p = size(layout)
    outcomes = run_processes(p, close_early, tmp_path, nodes=nodes(layout))
    assert [o.result for o in outcomes] == [f"{p:.1f}", "closed"] * (p // 2)
