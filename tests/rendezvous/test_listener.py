"""The port on which a rank listens, and the address that it publishes."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from allreduce.errors import PeerError, UsageError
from allreduce.rendezvous.listener import (
    CallAddress,
    check_different,
    listen,
    ports_option,
    refusal,
)

HERE = "127.0.0.1"


def of(text: str) -> range:
    return ports_option({"ALLREDUCE_PORTS": text})


@pytest.fixture
def open_sockets() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def free() -> range:
    """Three ports in a row that nobody has."""
    for low in range(21000, 29000, 3):
        with ExitStack() as stack:
            try:
                for port in range(low, low + 3):
                    sock = stack.enter_context(socket.socket())
                    sock.bind((HERE, port))
            except OSError:
                continue
            return range(low, low + 3)
    raise AssertionError("no free ports")


def call(open_sockets: ExitStack, ports: range, local_index: int) -> int:
    listener = listen(HERE, ports, local_index=local_index, congestion=None, loopback=True)
    port: int = open_sockets.enter_context(listener).getsockname()[1]
    return port


def test_a_port_or_a_range() -> None:
    assert of("29600") == range(29600, 29601)
    assert of(" 29600-29607 ") == range(29600, 29608)
    assert of("") == range(1)


@pytest.mark.parametrize("text", ["0", "65536", "9-8", "-5", "a", "1-", "1-2-3", "1,2"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="ALLREDUCE_PORTS="):
        of(text)


def test_ranks_of_a_host_share_a_range(open_sockets: ExitStack, free: range) -> None:
    assert [call(open_sockets, free, index) for index in (1, 1, 4)] == [free[1], free[2], free[0]]


def test_a_range_that_is_used_up_says_so(open_sockets: ExitStack, free: range) -> None:
    for index in range(3):
        call(open_sockets, free, index)
    with pytest.raises(UsageError, match=rf"all 3 ports from {free[0]} to {free[2]} .* in use"):
        call(open_sockets, free, 0)


def test_a_port_can_be_had_again_at_once(open_sockets: ExitStack, free: range) -> None:
    only = free[:1]
    listener = listen(HERE, only, local_index=0, congestion=None, loopback=True)
    with listener, socket.create_connection((HERE, only[0])):
        listener.setblocking(True)
        listener.accept()[0].close()  # the end that closes first waits (TIME_WAIT)
    assert call(open_sockets, only, 0) == only[0]


def test_the_kernel_chooses_without_a_range(open_sockets: ExitStack) -> None:
    assert call(open_sockets, of(""), 5) > 0


def test_an_address_travels_as_it_is(open_sockets: ExitStack) -> None:
    listener = listen(HERE, of(""), local_index=0, congestion=None, loopback=True)
    open_sockets.enter_context(listener)
    own = CallAddress.of(listener, {})
    assert CallAddress.unpack(3, own.pack()) == own
    assert str(own) == f"lo 127.0.0.1 port {own.port}"
    translated = CallAddress.of(listener, {"ALLREDUCE_ADVERTISE": "203.0.113.5"})
    assert str(translated) == f"203.0.113.5 port {own.port}, which leads to {own}"
    assert translated.resolve(3)[1] == ("203.0.113.5", own.port)


@pytest.mark.parametrize("host", ["no.such.host", "a..b", "a" * 64 + ".b"])
def test_a_name_that_nobody_knows_is_named(host: str) -> None:
    with pytest.raises(UsageError, match=f"ALLREDUCE_ADVERTISE={host} of rank 3 cannot be"):
        CallAddress(host=host, port=9, behind="eth0").resolve(3)


@pytest.mark.parametrize(
    ("error", "kind"), [(ValueError("a"), UsageError), (OSError("a"), PeerError)]
)
def test_a_refusal_becomes_an_error_that_names_the_rank(error: Exception, kind: type) -> None:
    with pytest.raises(kind, match="rank 3: a"):
        CallAddress.unpack(3, refusal(error))


BRIDGE = CallAddress(host="172.17.0.1", port=4711, interface="docker0")
PUBLIC = CallAddress(host="203.0.113.5", port=29600, behind="eth0 10.0.0.2 port 29600")


def test_an_address_that_two_hosts_have_is_refused() -> None:
    check_different([BRIDGE, BRIDGE], ["a", "a"])
    with pytest.raises(UsageError, match=r"ranks 0 and 2 run on different hosts.* docker0 172"):
        check_different([BRIDGE, BRIDGE, BRIDGE], ["a", "a", "b"])


def test_hosts_behind_one_translator_differ_in_the_port() -> None:
    other = CallAddress(host=PUBLIC.host, port=29601, behind="eth0 10.0.0.3 port 29601")
    check_different([PUBLIC, other], ["a", "b"])
    with pytest.raises(UsageError, match=r"ranks 0 and 1 .* ports of its own"):
        check_different([PUBLIC, PUBLIC], ["a", "b"])
    with pytest.raises(UsageError, match=r"ranks 0 and 1 .* ports of its own"):
        check_different([PUBLIC, PUBLIC], ["a", "a"])
