"""What goes wrong during a start-up is a typed error on every rank that is alive, in time."""

import errno
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rendezvous.ranks import (
    CLEAN,
    TIMEOUT,
    all_raise,
    close_wirings,
    connect_rank,
    connected,
    in_threads,
    nothing_left_open,
    try_connect,
)

from allreduce.errors import Timeout, UsageError
from allreduce.rendezvous import startup
from allreduce.rendezvous.connect import Connections
from allreduce.rendezvous.store import FileStore, MemoryStore

SHORT = 0.5
SLACK = 10.0  # a busy machine's


def connect_some(ranks: list[int], world_size: int, **options: Any) -> list[Any]:
    store = MemoryStore()
    return in_threads(len(ranks), lambda i: connect_rank(store, ranks[i], world_size, **options))


@pytest.mark.parametrize("missing", [0, 1, 3])
def test_a_rank_that_never_comes_is_named_within_the_deadline(missing: int) -> None:
    present = [rank for rank in range(4) if rank != missing]
    start = time.monotonic()
    with nothing_left_open():
        results = connect_some(present, 4, timeout=SHORT, nodes=2)
    assert SHORT <= time.monotonic() - start < SHORT + SLACK
    all_raise(results, TimeoutError, f"rank {missing} never came")


def test_several_missing_ranks_are_all_named() -> None:
    all_raise(connect_some([0, 2], 5, timeout=SHORT), TimeoutError, "ranks 1, 3, 4 never came")


ARGUMENTS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "lanes": ({"lanes": 2}, {"lanes": 3}, "lanes is 2 on rank 0 but 3 on rank 2"),
    "checksum": (
        {},
        {"environ": {"ALLREDUCE_CHECKSUM": "0"}},
        "checksum is True on rank 0 but False on rank 2",
    ),
    "nodes": ({"nodes": 1}, {"nodes": 3}, "nodes is 1 on rank 0 but 3 on rank 2"),
    "variable": (
        {},
        {"environ": {"ALLREDUCE_NODES": "3"}},
        "nodes is None on rank 0 but 3 on rank 2",
    ),
    "no secret": (
        {"environ": {"ALLREDUCE_SECRET": "sixteen bytes at least"}},
        {},
        "rank 2 wrote into the store does not carry this job's seal",
    ),
    "other secret": (
        {"environ": {"ALLREDUCE_SECRET": "sixteen bytes at least"}},
        {"environ": {"ALLREDUCE_SECRET": "another sixteen bytes"}},
        "rank 2 wrote into the store does not carry this job's seal",
    ),
}


@pytest.mark.parametrize(("usual", "odd", "says"), ARGUMENTS.values(), ids=ARGUMENTS.keys())
def test_ranks_that_disagree_all_hear_it_at_once(usual, odd, says: str) -> None:
    store = MemoryStore()

    def body(rank: int) -> Connections:
        return connect_rank(store, rank, 3, **(odd if rank == 2 else usual))

    start = time.monotonic()
    results = in_threads(3, body)
    assert time.monotonic() - start < SLACK
    # One with another secret cannot read what rank 0 says about it either.
    sealed = "seal" in says
    all_raise(results, ValueError, says, but=(2,) if sealed else ())
    all_raise(results, ValueError, "seal" if sealed else says)


def test_two_builds_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    make = startup._rank_info

    def other_sources(request, unix):
        made = make(request, unix)
        return replace(made, sources="0123abcd") if request.rank == 2 else made

    monkeypatch.setattr(startup, "_rank_info", other_sources)
    results = in_threads(3, lambda rank: connect_rank(store, rank, 3))
    all_raise(results, ValueError, "rank 2 runs another build than rank 0")
    assert "0123abcd" in str(results[0])


def test_world_sizes_that_disagree_are_named() -> None:
    store = MemoryStore()
    results = in_threads(3, lambda rank: connect_rank(store, rank, 4 if rank == 1 else 3))
    all_raise(results, ValueError, "world_size is 3 on rank 0 but 4 on rank 1")


def test_a_rank_outside_the_smaller_world_hears_of_it() -> None:
    class Keeps(MemoryStore):  # else the others may have tidied up before it looks
        def delete_key(self, key: str, /) -> bool:
            return False

        def set(self, key: str, value: bytes, /) -> None:
            if not (key.endswith("/call") and self.check([key])):  # its name is taken away
                super().set(key, value)

    store = Keeps()
    results = in_threads(3, lambda rank: connect_rank(store, rank, 3 if rank == 2 else 2))
    assert isinstance(results[2], ValueError)
    assert "world_size is 2 on rank 0 but 3 on rank 2" in str(results[2])
    close_wirings(results)


def test_a_rank_that_comes_after_an_error_hears_of_it() -> None:
    store = MemoryStore()
    all_raise(
        in_threads(2, lambda rank: connect_rank(store, rank, 3, lanes=1 + rank)),
        ValueError,
        "lanes is 1 on rank 0 but 2 on rank 1",
    )
    with pytest.raises(
        TimeoutError, match=r"given up before this rank came.* lanes is 1 on rank 0"
    ):
        connect_rank(store, 2, 3, timeout=0.5)


def test_a_store_that_dies_once_all_are_connected_fails_nobody() -> None:
    class Dies(MemoryStore):
        def set(self, key: str, value: bytes, /) -> None:
            if key.endswith("/call") and self.check([key]):
                raise EOFError("the server has gone")
            super().set(key, value)

    with connected(3, Dies()):
        pass


def test_impossible_nodes_are_refused_on_every_rank() -> None:
    all_raise(try_connect(3, nodes=4), ValueError, "nodes=4: 3 ranks")


def test_two_processes_with_one_rank_are_noticed() -> None:
    store = MemoryStore()
    results = in_threads(3, lambda i: connect_rank(store, min(i, 1), 2, timeout=8.0))
    errors = [result for result in results if isinstance(result, Exception)]
    close_wirings(results)
    assert len(errors) == 1
    all_raise(errors, (UsageError, Timeout), "another process has the same rank 1")


def test_a_process_that_comes_when_another_one_had_its_rank_hears_so() -> None:
    with connected(2, store := MemoryStore()), pytest.raises(Timeout, match="the same rank 1"):
        connect_rank(store, 1, 2, timeout=SHORT)


@pytest.mark.parametrize(
    ("rank", "world_size", "options", "says"),
    [
        (2, 2, {}, "rank=2, world_size=2"),
        (-1, 2, {}, "rank=-1"),
        (0, 0, {}, "world_size=0"),
        (0, 2, {"lanes": 0}, "lanes=0"),
        (0, 1, {"nodes": 2}, "nodes=2: 1 ranks"),
    ],
)
def test_bad_arguments_are_named(rank: int, world_size: int, options, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        connect_rank(MemoryStore(), rank, world_size, **options)


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"ALLREDUCE_IFACE": "nosuch0"}, "rank 1: ALLREDUCE_IFACE=nosuch0: matches no interface"),
        ({"ALLREDUCE_HOST": "198.51.100.7"}, "rank 1: cannot listen on 198.51.100.7"),
        ({"ALLREDUCE_TCP_CONGESTION": "nosuch"}, "rank 1: ALLREDUCE_TCP_CONGESTION=nosuch"),
    ],
)
def test_a_rank_without_an_address_fails_all_at_once(environ, says: str) -> None:
    store = MemoryStore()
    start = time.monotonic()
    with nothing_left_open():
        results = in_threads(
            3,
            lambda rank: connect_rank(
                store, rank, 3, nodes=3, environ=environ if rank == 1 else CLEAN
            ),
        )
    assert time.monotonic() - start < SLACK
    all_raise(results, ValueError, says, but=(1,))
    all_raise(results, ValueError, says.removeprefix("rank 1: "))


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_leader_without_memory_fails_all_ranks(nodes: int) -> None:
    store = MemoryStore()

    def too_much(_local_size: int) -> int:
        return 1 << 60

    start = time.monotonic()
    with nothing_left_open():
        results = in_threads(
            4, lambda r: connect_rank(store, r, 4, nodes=nodes, arena_bytes=too_much)
        )
    assert time.monotonic() - start < TIMEOUT
    assert isinstance(results[0], OSError)
    assert "cannot allocate 1152921504606846976 B of shared memory: " in str(results[0])
    assert all(isinstance(result, OSError) for result in results[1:])


def test_keys_of_an_earlier_generation_are_never_read(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    results = in_threads(3, lambda rank: connect_rank(store, rank, 4, timeout=SHORT))
    all_raise(results, TimeoutError, "rank 3 never came")  # a run that stopped before it came
    assert len(list(tmp_path.iterdir())) > 3
    with connected(4, FileStore(tmp_path), generation=1) as mesh:
        assert mesh[0].generation == 1


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("late", [0, 1])
def test_a_rank_that_missed_an_attempt_hears_nothing_of_it(world_size: int, late: int) -> None:
    store = MemoryStore()
    there = [rank for rank in range(world_size) if rank != late]
    results = in_threads(
        len(there), lambda i: connect_rank(store, there[i], world_size, timeout=SHORT)
    )
    all_raise(results, TimeoutError, f"rank {late} never came")

    def again(rank: int) -> Connections:
        time.sleep(0.2 * (rank != late))  # it is the first this time
        return connect_rank(store, rank, world_size)

    results = in_threads(world_size, again)
    assert all(isinstance(result, Connections) for result in results), results
    close_wirings(results)


@pytest.mark.parametrize("killed", [0, 1, 2])
def test_an_attempt_that_was_killed_half_way_leaves_nothing_to_stumble_over(
    tmp_path: Path, killed: int
) -> None:
    program = (
        "import sys, allreduce.rendezvous.store as s, allreduce.rendezvous.connect as m\n"
        "m.connect(s.FileStore(sys.argv[1]), int(sys.argv[2]), 3, arena_bytes=lambda n: 65536 * n,"
        " timeout=60, environ={})"
    )
    # Rank 0 has read what one rank wrote, and waits for the other; both are killed then.
    others = [rank for rank in (0, 1, 2) if rank != killed]
    command = [sys.executable, "-c", program, str(tmp_path)]
    popens = [subprocess.Popen([*command, str(rank)]) for rank in others]
    written = 2 if killed else 0
    while len(list(tmp_path.glob("key-*info*"))) < written:
        time.sleep(0.01)
    for popen in popens:
        popen.kill()
        popen.wait()
    with connected(3, FileStore(tmp_path)) as mesh:
        assert len(mesh) == 3


def test_another_process_cannot_be_rank_0_unnoticed() -> None:
    store = MemoryStore()
    results = in_threads(3, lambda i: connect_rank(store, max(0, i - 1), 2, timeout=2.0))
    errors = [result for result in results if isinstance(result, Exception)]
    close_wirings(results)
    assert errors
    assert all(isinstance(error, ValueError | TimeoutError) for error in errors), errors


def test_a_lost_store_is_a_connection_error() -> None:
    class Lost(MemoryStore):
        def check(self, keys: list[str], /) -> bool:
            raise RuntimeError("failed to recv, got 0 bytes")

    with pytest.raises(ConnectionError, match="got 0 bytes"):
        connect_rank(Lost(), 1, 2)


FEW_DESCRIPTORS = """
import resource
from allreduce.rendezvous.connect import connect
from allreduce.rendezvous.store import FileStore
import sys, threading
resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
errors = []
def rank(r):
    try:
        store = FileStore(sys.argv[1])
        connect(store, r, 16, arena_bytes=lambda n: 4096, timeout=20, nodes=16, environ={})
    except OSError as error:
        errors.append(error)
threads = [threading.Thread(target=rank, args=(r,)) for r in range(16)]
[t.start() for t in threads]
[t.join() for t in threads]
print(len(errors), *errors[:1])
"""


def test_too_few_descriptors_is_said_with_the_limit(tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", FEW_DESCRIPTORS, str(tmp_path)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.stdout.startswith("16 "), done.stderr
    assert (
        "the limit is 60; raise it (ulimit -n" in done.stdout
        or "Too many open files" in done.stdout
    )


NO_THREADS = """
import errno, os, resource
from allreduce.errors import SystemCallError
from allreduce.rendezvous.tcp_store import TcpStore
TcpStore("127.0.0.1", 0, True, 5.0).close()  # imports what another user may not
if os.getuid() == 0:  # root has no such limit
    os.setresuid(12345, 12345, 0)
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
before = len(os.listdir("/proc/self/fd"))
try:
    TcpStore("127.0.0.1", 0, True, 5.0)
except SystemCallError as error:
    assert error.errno == errno.EAGAIN
    print(len(os.listdir("/proc/self/fd")) - before, error)
"""


def test_no_thread_for_the_store_is_said_and_leaves_nothing() -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", NO_THREADS], env=environ, capture_output=True, text=True, timeout=50
    )
    assert done.stdout.startswith("0 "), done.stderr
    assert "rank 0 cannot start the thread that serves the store (raise ulimit -u" in done.stdout


def test_this_process_has_descriptors_for_these_tests() -> None:
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 1024, os.strerror(errno.EMFILE)
