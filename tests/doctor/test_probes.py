"""Probes between two ranks of this process: rounds, strangers, and what a server answers."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from allreduce.doctor.probes import Peer, Server, measure_rate, reach_all, rounds

_TOKEN = bytes(range(16))


@contextlib.contextmanager
def _serving(rank: int) -> Iterator[Peer]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(rank, listener, _TOKEN)
    try:
        yield Peer(rank=rank, address="127.0.0.1", port=listener.getsockname()[1])
    finally:
        server.close()


def test_a_server_is_reached_and_carries_a_stream_each_way() -> None:
    with _serving(1) as peer:
        (reach,) = reach_all(0, [peer], _TOKEN, 20.0)
        assert (reach.error, reach.large_error) == ("", "")
        assert reach.round_trip > 0
        assert abs(reach.clock_offset) < 0.5  # one clock
        there, back = measure_rate(0, peer, _TOKEN, 20.0)
    assert (there.source, there.target, back.source, back.target) == (0, 1, 1, 0)
    assert min(there.rate, back.rate) > 0


def test_another_rank_that_answers_is_an_error() -> None:
    """As where two hosts have one address."""
    with _serving(2) as peer:
        wrong = Peer(rank=1, address=peer.address, port=peer.port)
        (reach,) = reach_all(0, [wrong], _TOKEN, 20.0)
    assert reach.error == "rank 2 answers there"


def test_a_stranger_gets_no_answer() -> None:
    with _serving(1) as peer:
        (reach,) = reach_all(0, [peer], bytes(16), 20.0)
    assert reach.error


def test_a_server_takes_no_more_than_ranks_send() -> None:
    with _serving(1) as peer, socket.create_connection((peer.address, peer.port), 20) as sock:
        sock.sendall(b"HIERdoc1" + _TOKEN + (0).to_bytes(4, "little"))
        assert len(sock.recv(12, socket.MSG_WAITALL)) == 12
        sock.sendall(b"\1" + (1 << 31).to_bytes(4, "little"))
        assert sock.recv(1) == b""  # it hangs up


def test_nobody_there_is_an_error() -> None:
    with _serving(1) as peer:
        pass
    (reach,) = reach_all(0, [peer], _TOKEN, 20.0)
    assert reach.error == "connection refused"
    assert [rate.rate for rate in measure_rate(0, peer, _TOKEN, 20.0)] == [0.0, 0.0]


@pytest.mark.parametrize("count", range(1, 40))
def test_rounds_have_nobody_twice_and_no_pair_twice(count: int) -> None:
    members = [3 * number for number in range(count)]
    found = rounds(members)
    pairs = [pair for pairs in found for pair in pairs]
    assert len(set(pairs)) == len(pairs)
    for pairs_of_round in found:
        flat = [member for pair in pairs_of_round for member in pair]
        assert len(set(flat)) == len(flat)
        assert set(flat) <= set(members)
    if 1 < count <= 4:
        assert len(pairs) == count * (count - 1) // 2
    partners = {member: sum(member in pair for pair in pairs) for member in members}
    least = (count - 1).bit_length() - count % 2
    assert min(partners.values()) >= min(count - 1, least)
    assert len(found) <= max(3, count.bit_length())
