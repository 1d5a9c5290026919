"""Complete start-ups: what every rank holds afterwards, for every layout, and that it works."""

import fcntl
import mmap
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rendezvous.ranks import (
    ARENA_BYTES,
    TIMEOUT,
    connect_rank,
    connected,
    in_threads,
    nothing_left_open,
    open_descriptors,
)

from allreduce.rendezvous.connect import Connections, exchange_fd
from allreduce.rendezvous.shared_memory import create_shared_memory
from allreduce.rendezvous.store import FileStore, MemoryStore

LAYOUTS = {
    "1x2": (2, 1),
    "2x1": (2, 2),
    "1x4": (4, 1),
    "2x2": (4, 2),
    "4x1": (4, 4),
    "3+2": (5, 2),
    "interleaved": (5, ["a", "b", "b", "a", "b"]),
    "1+4": (5, [0, 1, 1, 1, 1]),
    "8x1": (8, 8),
}


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS.keys())
def mesh(request: pytest.FixtureRequest):
    world_size, nodes = request.param
    with connected(world_size, nodes=nodes, lanes=3) as found:
        yield found


def receive(fd: int, count: int) -> bytes:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    data = b""
    while len(data) < count:
        assert poller.poll(1000 * TIMEOUT), "nothing came"
        data += os.read(fd, count - len(data))
    return data


def pairs(mesh: list[Connections]):
    for one in mesh:
        for other in mesh:
            if one.rank != other.rank:
                yield one, other, one.node_of_rank[one.rank] == one.node_of_rank[other.rank]


def test_all_ranks_agree_on_group_and_nodes(mesh: list[Connections]) -> None:
    first = mesh[0]
    assert [w.rank for w in mesh] == list(range(len(mesh)))
    for connections in mesh:
        assert connections.world_size == len(mesh)
        assert connections.node_of_rank == first.node_of_rank
        assert connections.group_id == first.group_id
        assert connections.ranks_on_host == len(mesh)
        node = connections.node_of_rank[connections.rank]
        assert connections.local_ranks == [r for r, n in enumerate(first.node_of_rank) if n == node]


def test_each_pair_has_a_control_stream_of_the_right_kind(mesh: list[Connections]) -> None:
    for one, other, near in pairs(mesh):
        message = b"from %d to %d" % (one.rank, other.rank)
        os.write(one.control[other.rank], message)
        assert receive(other.control[one.rank], len(message)) == message
        with socket.socket(fileno=os.dup(one.control[other.rank])) as sock:
            assert (sock.family == socket.AF_UNIX) == near


def test_each_pair_of_nodes_has_its_lanes_end_to_end(mesh: list[Connections]) -> None:
    for one, other, near in pairs(mesh):
        assert (other.rank in one.data) == (not near)
        for lane, fd in enumerate(one.data.get(other.rank, [])):
            message = b"%d %d lane %d" % (one.rank, other.rank, lane)
            os.write(fd, message)
            assert receive(other.data[one.rank][lane], len(message)) == message
        assert near or len(one.data[other.rank]) == 3 + 1  # the last for messages


def test_tcp_sockets_are_tuned(mesh: list[Connections]) -> None:
    for connections in mesh:
        for peer, lanes in connections.data.items():
            for fd in (*lanes, connections.control[peer]):
                with socket.socket(fileno=os.dup(fd)) as sock:
                    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                    assert sock.getpeername()[0] == "127.0.0.1"
            with socket.socket(fileno=os.dup(connections.control[peer])) as sock:
                # No host is silent here, and a crowded loopback loses probes.
                assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            with socket.socket(fileno=os.dup(lanes[0])) as sock:
                name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
                assert name.rstrip(b"\0").decode() == connections.congestion
        assert bool(connections.congestion) == bool(connections.data)


def test_the_ranks_of_a_node_share_one_sealed_arena(mesh: list[Connections]) -> None:
    for connections in mesh:
        local_size = len(connections.local_ranks)
        if local_size == 1:
            assert (connections.arena_fd, connections.arena_bytes) == (-1, 0)
            continue
        size = os.fstat(connections.arena_fd).st_size
        assert size == connections.arena_bytes == ARENA_BYTES * local_size
        with pytest.raises(PermissionError):
            os.ftruncate(connections.arena_fd, 0)
        with mmap.mmap(connections.arena_fd, size) as memory:
            memory[connections.rank] = connections.rank + 1
    for one, other, near in pairs(mesh):
        if near:
            with mmap.mmap(one.arena_fd, one.arena_bytes) as memory:
                assert memory[other.rank] == other.rank + 1


def test_a_doorbell_rings_at_its_local_rank_alone(mesh: list[Connections]) -> None:
    for connections in mesh:
        local_size = len(connections.local_ranks)
        assert len(connections.doorbells) == (local_size if local_size > 1 else 0)
        for bell in connections.doorbells:
            os.eventfd_write(bell, connections.rank + 1)
    for connections in mesh:
        if connections.doorbells:
            mine = connections.doorbells[connections.local_ranks.index(connections.rank)]
            assert os.eventfd_read(mine) == sum(rank + 1 for rank in connections.local_ranks)
            with pytest.raises(BlockingIOError):
                os.eventfd_read(mine)


def test_every_descriptor_is_nonblocking_and_close_on_exec(mesh: list[Connections]) -> None:
    for connections in mesh:
        fds = [*connections.control.values(), *connections.doorbells]
        fds += [fd for lanes in connections.data.values() for fd in lanes]
        fds += [link.fileno() for link in connections.fd_links]
        assert all(not os.get_blocking(fd) for fd in fds)
        if connections.arena_fd >= 0:
            fds.append(connections.arena_fd)
        assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in fds)


def test_a_descriptor_of_the_leader_reaches_its_whole_node(mesh: list[Connections]) -> None:
    def share(rank: int) -> tuple[int, bytes]:
        connections = mesh[rank]
        leader = rank == connections.local_ranks[0]
        fd = create_shared_memory(4096) if leader else -1
        if leader:
            os.pwrite(fd, b"of node %d" % connections.node_of_rank[rank], 0)
        received = exchange_fd(connections, fd, TIMEOUT)
        text = os.pread(received, 9, 0)
        os.close(received)
        return connections.node_of_rank[rank], text

    for result in in_threads(len(mesh), share):
        assert result[1] == b"of node %d" % result[0]


def test_a_leader_without_a_descriptor_is_an_error_on_its_node() -> None:
    with connected(3) as mesh:
        results = in_threads(3, lambda rank: exchange_fd(mesh[rank], -1, TIMEOUT))
    assert results[0] == -1
    assert all(isinstance(error, ConnectionError) for error in results[1:])


def test_sharing_ends_at_the_deadline_and_at_a_dead_leader() -> None:
    with connected(2) as mesh:
        with pytest.raises(TimeoutError, match="lowest rank"):
            exchange_fd(mesh[1], -1, 0.05)
        mesh[0].fd_links[0].close()
        with pytest.raises(ConnectionError, match="lowest rank is gone"):
            exchange_fd(mesh[1], -1, TIMEOUT)


def test_one_rank_is_connected_with_nobody() -> None:
    with connected(1) as (connections,):
        assert (
            connections.control,
            connections.data,
            connections.arena_fd,
            connections.doorbells,
        ) == ({}, {}, -1, [])
        assert connections.node_of_rank == connections.local_ranks == [0]


def test_forty_ranks_connect_on_five_nodes() -> None:
    with connected(40, nodes=5, lanes=1, connect_to="all") as mesh:
        assert sum(len(connections.control) for connections in mesh) == 40 * 39
        assert sum(len(connections.data) for connections in mesh) == 40 * 32


def test_close_leaves_no_descriptor_and_in_the_store_that_nobody_calls(tmp_path: Path) -> None:
    with nothing_left_open():
        for generation in (0, 0, 0, 1):  # on one store, again and again
            with connected(4, FileStore(tmp_path), nodes=2, generation=generation):
                pass
    left = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    assert left == {"key-mesh%2F0%2Fcall": 32, "key-mesh%2F1%2Fcall": 32}  # a seal of nothing


def test_nobody_listens_once_the_mesh_is_up() -> None:
    with connected(4, nodes=2) as mesh:
        assert mesh
        inodes = {what[8:-1] for what in open_descriptors().values() if what.startswith("socket:[")}
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        assert [row for row in rows if row[3] == "0A" and row[9] in inodes] == []
        rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
        accepting = 0x10000
        assert [r for r in rows if int(r[3], 16) & accepting and r[6] in inodes] == []


def test_the_congestion_control_asked_for_is_in_force() -> None:
    with connected(2, nodes=2, environ={"ALLREDUCE_TCP_CONGESTION": "reno"}) as mesh:
        assert mesh[0].congestion == mesh[1].congestion == "reno"


def test_groups_of_any_torch_store() -> None:
    distributed = pytest.importorskip("torch.distributed")
    with connected(3, distributed.PrefixStore("cpu", distributed.HashStore()), nodes=2) as mesh:
        assert mesh[2].world_size == 3


RANK_MAIN = """
import os, sys, time
from allreduce.rendezvous.launcher_environment import detect_launch, open_store
from allreduce.rendezvous.connect import connect
launch = detect_launch()
store = open_store(launch, 30)
start = time.monotonic()
connections = connect(store, launch.rank, launch.world_size, arena_bytes=lambda n: 4096, timeout=30)
seconds = time.monotonic() - start
for fd in connections.control.values():
    os.write(fd, b"%d;" % launch.rank)
heard = set()
deadline = time.monotonic() + 30
for peer, fd in connections.control.items():
    while True:
        assert time.monotonic() < deadline
        try:
            heard.add(int(os.read(fd, 8).rstrip(b";")))
            break
        except BlockingIOError:
            time.sleep(0.002)
nodes = connections.node_of_rank
print(f"{connections.rank} heard {sorted(heard)} nodes {nodes} in {seconds:.3f} s")
"""


@pytest.mark.parametrize("nodes", ["1", "2", "0,1,1,1"])
def test_processes_connect_by_the_store_of_rank_0(nodes: str) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "WORLD_SIZE": "4",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ALLREDUCE_NODES": nodes,
        "ALLREDUCE_SECRET": "a secret that every rank has",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK_MAIN],
            env={**environ, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (3, 1, 0, 2)
    ]
    try:
        said = [process.communicate(timeout=50)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for rank, text in zip((3, 1, 0, 2), said, strict=True):
        peers = [r for r in range(4) if r != rank]
        assert f"{rank} heard {peers}" in text, text


def test_ranks_may_come_in_any_order_and_late() -> None:
    store = MemoryStore()

    def late(rank: int) -> Connections:
        time.sleep(0.05 * ((rank * 3) % 4))
        return connect_rank(store, rank, 4, nodes=2)

    for result in in_threads(4, late):
        assert isinstance(result, Connections), result
        result.close()
