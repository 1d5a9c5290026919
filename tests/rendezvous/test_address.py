"""What a socket between ranks is set to."""

import socket
from pathlib import Path

import pytest

from allreduce.rendezvous import address
from allreduce.rendezvous.address import tune

KIB, MIB = 1 << 10, 1 << 20


@pytest.mark.parametrize("loopback", [False, True])
def test_sockets_between_machines_hold_little_that_is_not_sent(loopback: bool) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as sock,
    ):
        tune(sock, dead_after=4, loopback=loopback)
        read = sock.getsockopt
        assert read(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        unsent = read(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
        kept_alive = read(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert (unsent, kept_alive) == ((0, 0) if loopback else (512 << 10, 1))


@pytest.mark.parametrize(
    ("granted", "grows_to", "asked"),
    [
        (str(4 * MIB), f"4096\t16384\t{4 * MIB}", 4 * MIB),  # today's kernels
        (str(208 * KIB), f"4096\t16384\t{4 * MIB}", 0),  # it would lose what the kernel gives
        (str(16 * MIB), f"4096\t65536\t{64 * MIB}", 0),
        ("none", f"4096\t16384\t{4 * MIB}", 0),
        (str(4 * MIB), "4096", 0),
        (None, None, 0),  # a sandbox that shows nothing
    ],
)
def test_a_send_buffer_is_asked_for_where_it_becomes_larger(
    granted: str | None,
    grows_to: str | None,
    asked: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, text in (("core/wmem_max", granted), ("ipv4/tcp_wmem", grows_to)):
        if text is not None:
            (tmp_path / name).parent.mkdir()
            (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(address, "_PROC_NET", tmp_path)
    assert address._send_buffer_bytes.__wrapped__() == asked


@pytest.mark.parametrize("loopback", [False, True])
def test_a_socket_between_machines_has_the_send_buffer(
    loopback: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(address, "_send_buffer_bytes", lambda: 50 * KIB)
    with socket.socket() as sock:
        before = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        tune(sock, dead_after=4, loopback=loopback)
        after = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    assert after == (before if loopback else 100 * KIB)
