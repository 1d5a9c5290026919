"""Which interface a user's words mean."""

import socket

import pytest

from allreduce.errors import UsageError
from allreduce.rendezvous.address import choose_address
from allreduce.rendezvous.interfaces import (
    InterfaceAddress,
    InterfaceOption,
    from_nccl,
    host_addresses,
    interface_of,
)

HOST = [
    InterfaceAddress("lo", "127.0.0.1"),
    InterfaceAddress("docker0", "172.17.0.1"),
    InterfaceAddress("eth0", "10.1.0.7"),
    InterfaceAddress("eth1", "10.2.0.7"),
    InterfaceAddress("eth1", "10.3.0.7", "eth1:1"),
    InterfaceAddress("lo", "::1"),
    InterfaceAddress("eth0", "fd00::7"),
    InterfaceAddress("ib0", "fd01::7"),
]


def select(text: str, preferred: str | None = None, local_index: int = 0) -> str | None:
    found = InterfaceOption(text, f"ALLREDUCE_IFACE={text}").select(HOST, preferred, local_index)
    return found and found.address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("eth0", "10.1.0.7"),
        ("eth", None),  # a name is whole
        ("eth1", "10.2.0.7"),
        ("ib0", "fd01::7"),
        ("eth?", "10.1.0.7"),
        ("eth1:1", "10.3.0.7"),  # the label of an address
        ("nosuch0,eth1", "10.2.0.7"),
        ("10.3.0.0/16", "10.3.0.7"),
        ("10.3.0.9/16", "10.3.0.7"),  # the address of another host of that network
        ("fd00::/16", "fd00::7"),
        ("10.2.0.7", "10.2.0.7"),
        ("!docker0", "10.1.0.7"),
        ("!docker*,!eth0", "10.2.0.7"),
        ("eth*,!eth0", "10.2.0.7"),
        ("!eth*,!docker0", "fd01::7"),
        (" eth1 , !docker0 ", "10.2.0.7"),
        ("10.0.0.0/8,!10.1.0.0/16", "10.2.0.7"),
        ("*", "172.17.0.1"),
        ("lo", "127.0.0.1"),
        ("l*", None),  # loopback is never meant by a pattern
        ("127.0.0.0/8", "127.0.0.1"),
        ("192.168.0.0/16", None),
    ],
)
def test_words_choose_an_address(text: str, address: str | None) -> None:
    assert select(text) == address


def test_the_address_on_the_route_is_taken_among_several() -> None:
    assert select("*", preferred="10.3.0.7") == "10.3.0.7"
    assert select("!docker0", preferred="fd00::7") == "fd00::7"
    assert select("eth0", preferred="10.3.0.7") == "10.1.0.7"


def test_two_entries_spread_the_ranks_of_a_node() -> None:
    chosen = [select("eth0,nosuch0,10.3.0.0/16", None, index) for index in range(4)]
    assert chosen == ["10.1.0.7", "10.3.0.7"] * 2


def test_one_pattern_is_one_network() -> None:
    assert {select("eth*", None, index) for index in range(4)} == {"10.1.0.7"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (" , ", "names no interface"),
        ("!", "names no interface"),
        ("10.0.0.0/99", "is no network"),
        ("1.2.3", "is no network"),
    ],
)
def test_words_without_sense_are_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        select(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("eth", "eth*"),
        ("=eth0,eth1", "eth0,eth1"),
        ("^docker,lo", "!docker*,!lo*"),
        ("^=docker0", "!docker0"),
        ("", ""),
        ("^", ""),
    ],
)
def test_words_of_nccl(text: str, words: str) -> None:
    assert from_nccl(text) == words


def test_this_host_has_loopback_and_what_the_kernel_routes_by() -> None:
    assert ("lo", "127.0.0.1") in {(each.interface, each.address) for each in host_addresses()}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))
        except OSError:
            pytest.skip("this machine has no route to others")
        assert interface_of(probe.getsockname()[0])
    assert not interface_of("198.51.100.1")


OF_OTHERS = [
    {"GLOO_SOCKET_IFNAME": "nosuch0"},
    {"GLOO_SOCKET_IFNAME": "lo"},
    {"GLOO_SOCKET_IFNAME": ","},
    {"GLOO_SOCKET_IFNAME": "eth0/1"},
    {"NCCL_SOCKET_IFNAME": "eth7:1"},
    {"NCCL_SOCKET_IFNAME": "^"},
]


@pytest.mark.parametrize("environ", OF_OTHERS, ids=str)
def test_a_useless_word_for_another_library_is_passed_over(environ: dict[str, str]) -> None:
    routed = choose_address(False, None, {"ALLREDUCE_IFACE": "!nosuch0"})
    assert choose_address(False, None, environ) == routed
    assert choose_address(True, None, environ) == "127.0.0.1"
