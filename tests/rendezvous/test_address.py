"""What a socket between ranks is set to."""

import socket

import pytest

from allreduce.rendezvous.address import tune


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
