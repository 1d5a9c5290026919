"""What the kernel counts on the sockets equals the closed forms: bytes, and messages in a row.

Bytes: received payload of TCP, with the 64-byte header that opens each channel, without checksums
where nothing is said of them. Rounds: segments of
TCP that carry data, for buffers so small that a message is one. Each round waits for the one
before, so that no two messages share a segment. Nothing of ours counts here.
"""

import itertools
import os
import socket
import struct
import threading

import numpy as np
import pytest
from schedule_cases import ALLREDUCES, floor_lg, received
from worlds import run_threads

from allreduce import _C
from allreduce.schedules import by_name

HEADER = 64
TRAILER = 8
# Of struct tcp_info (linux/tcp.h): u64 tcpi_bytes_received; u32 tcpi_data_segs_out and, of those,
# tcpi_total_retrans: a busy machine acknowledges late.
BYTES_RECEIVED, SEGMENTS_OUT, SENT_AGAIN = ("@Q", 128), ("@I", 156), ("@I", 100)


def count(comm, what):
    """A counter's sum over the data connections of this rank."""
    kind, offset = what
    total = 0
    for fd in itertools.chain.from_iterable(comm._connections.data.values()):
        with socket.socket(fileno=os.dup(fd)) as sock:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        total += struct.unpack_from(kind, info, offset)[0]
        if what is SEGMENTS_OUT:
            total -= struct.unpack_from(SENT_AGAIN[0], info, SENT_AGAIN[1])[0]
    return total


def counted(what, nodes, algo, nbytes, checksum=False):
    """What each rank counts during one allreduce; nodes: of each rank."""
    world_size = len(nodes)
    together = threading.Barrier(world_size)  # not one of ours, which would send

    def body(comm):
        x = np.ones(nbytes // 4, np.float32)
        together.wait(30)
        before = count(comm, what)
        together.wait(30)
        comm.allreduce(x, algo=algo)
        together.wait(30)
        after = count(comm, what)
        together.wait(30)  # the end of a stream counts as a byte received
        assert (x == world_size).all()
        return after - before

    return run_threads(world_size, body, nodes=nodes, checksum=checksum)


def about_a_mebibyte(parts):
    """Bytes that cut into equal chunks."""
    return (1 << 20) // (64 * parts) * 64 * parts


@pytest.mark.parametrize("p", [2, 3, 4, 6, 8])
def test_a_ring_receives_2_p_minus_1_of_p_buffers_from_its_neighbours(p):
    n = about_a_mebibyte(p)
    neighbours = min(2, p - 1)  # the sums come from one side, the results from the other
    expected = 2 * (p - 1) * n // p + HEADER * neighbours
    assert counted(BYTES_RECEIVED, range(p), "ring", n) == [expected] * p


@pytest.mark.parametrize("p", [2, 4, 8])
def test_halving_doubling_receives_2_p_minus_1_of_p_buffers_from_lg_p_peers(p):
    n = about_a_mebibyte(p)
    expected = 2 * (p - 1) * n // p + HEADER * floor_lg(p)
    assert counted(BYTES_RECEIVED, range(p), "halving_doubling", n) == [expected] * p


@pytest.mark.parametrize("p", [2, 4, 8])
def test_recursive_doubling_receives_lg_p_buffers(p):
    n = about_a_mebibyte(p)
    expected = floor_lg(p) * (n + HEADER)
    assert counted(BYTES_RECEIVED, range(p), "recursive_doubling", n) == [expected] * p


@pytest.mark.parametrize("p", [3, 4, 7])
@pytest.mark.parametrize("algo", ALLREDUCES)
def test_every_algorithm_receives_what_its_schedule_says(algo, p):
    schedule = by_name(algo, p)
    n = about_a_mebibyte(schedule.num_chunks)
    pairs = {(int(src), int(dst)) for _, src, dst, *_ in schedule.moves()}
    expected = [
        int(share * n) + HEADER * sum(dst == rank for _, dst in pairs)
        for rank, share in enumerate(received(schedule))
    ]
    assert counted(BYTES_RECEIVED, range(p), algo, n) == expected


@pytest.mark.parametrize(("num_nodes", "local_size"), [(2, 2), (2, 4), (4, 2)])
def test_a_rank_of_a_hierarchy_receives_the_closed_form_of_its_shard(num_nodes, local_size):
    n = about_a_mebibyte(num_nodes * local_size)
    nodes = np.repeat(range(num_nodes), local_size).tolist()
    shard = 2 * (num_nodes - 1) * n // num_nodes // local_size
    expected = shard + HEADER * floor_lg(num_nodes)  # one header, however many pieces cross
    assert counted(BYTES_RECEIVED, nodes, "halving_doubling", n) == [expected] * len(nodes)


@pytest.mark.parametrize("algo", ["ring", "halving_doubling", "recursive_doubling"])
@pytest.mark.parametrize("p", [2, 4])
def test_checksums_are_8_bytes_for_each_header_and_step(p, algo):
    n = about_a_mebibyte(p)
    schedule = by_name(algo, p)
    bounds = _C.even_bounds(n // 4, schedule.num_chunks)
    plain, checked = (counted(BYTES_RECEIVED, range(p), algo, n, checksum=c) for c in (False, True))
    for rank in range(p):
        queues = _C.lower(schedule, rank, bounds, (256 << 10) // 4).queues
        units = sum(len(steps) + 1 for _, send, steps in queues if not send)
        assert checked[rank] - plain[rank] == TRAILER * units


@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("p", [2, 4, 8])
@pytest.mark.parametrize(
    ("algo", "rounds"),
    [
        ("ring", lambda p: 2 * (p - 1)),
        ("halving_doubling", lambda p: 2 * floor_lg(p)),
        ("recursive_doubling", floor_lg),
    ],
    ids=["ring", "halving_doubling", "recursive_doubling"],
)
def test_each_round_is_one_segment_of_a_rank(algo, rounds, p, checksum):
    assert counted(SEGMENTS_OUT, range(p), algo, 64 * p, checksum) == [rounds(p)] * p


def test_one_rank_a_node_sends_the_2_lg_nodes_segments_of_a_small_buffer():
    sent = counted(SEGMENTS_OUT, [0, 0, 1, 1, 2, 2, 3, 3], "halving_doubling", 1024)
    assert sent == [2 * floor_lg(4), 0] * 4
