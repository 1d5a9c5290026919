"""Networks in words, and the command line's mistakes."""

from __future__ import annotations

import argparse

import pytest

from allreduce.emulate.command import main
from allreduce.emulate.network import (
    Network,
    delay_text,
    parse_delay,
    parse_rate,
    parse_share,
    parse_slow_host,
    rate_text,
)


@pytest.mark.parametrize(
    ("text", "rate"), [("50Gbit", 50e9), ("200Mbit/s", 2e8), ("1.5g", 1.5e9), ("9600", 9600.0)]
)
def test_rates(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    ("text", "delay"), [("40us", 40e-6), ("2ms", 2e-3), ("0", 0.0), ("1.5 s", 1.5), ("7ns", 7e-9)]
)
def test_delays(text: str, delay: float) -> None:
    assert parse_delay(text) == pytest.approx(delay)


@pytest.mark.parametrize("text", ["", "0Gbit", "-1Gbit", "50Gbyte", "fast"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="rate"):
        parse_rate(text)


@pytest.mark.parametrize("text", ["", "40", "us", "-1us", "40 hours"])
def test_what_is_no_delay(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="time"):
        parse_delay(text)


def test_shares() -> None:
    assert parse_share("1%") == parse_share("0.01") == 0.01
    assert parse_slow_host("7:0.5") == (7, 0.5)
    for text in ("2", "101%", "half", ""):
        with pytest.raises(argparse.ArgumentTypeError):
            parse_share(text)
    for text in ("7", "7:", ":0.5", "7:0", "x:0.5", "7:2"):
        with pytest.raises(argparse.ArgumentTypeError):
            parse_slow_host(text)


def test_dilation_slows_the_network_alone() -> None:
    network = Network(
        hosts=32, rate=50e9, delay=80e-6, dilation=250, slow_hosts=((7, 0.5),), loss=0.01
    )
    assert network.slowed_rate(0) == 25e6
    assert network.slowed_rate(7) == 12.5e6
    assert network.slowed_delay() == pytest.approx(0.02)
    assert Network.from_json(network.to_json()) == network
    assert "250 times slower: 200 Mbit/s, 20 ms" in str(network)


def test_texts() -> None:
    assert rate_text(1.5e9) == "1.5 Gbit/s"
    assert rate_text(9600) == "9.6 kbit/s"
    assert delay_text(4e-5) == "40 us"
    assert delay_text(0) == "0 ns"


def test_no_two_hosts_share_an_address() -> None:
    network = Network(hosts=1024, rate=1e9, delay=0)
    assert len({network.address(host) for host in range(1024)}) == 1024


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--hosts 1 --rate 1Gbit --delay 0 -- true", "--hosts"),
        ("--hosts 9999 --rate 1Gbit --delay 0 -- true", "at most 1024"),
        ("--hosts 2 --rate 1Gbit --delay 0", "give a command"),
        ("--hosts 2 --rate 1Gbit --delay 0 --check -- true", "or --check"),
        ("--hosts 2 --rate 1Gbit --delay 0 --slow-host 2:0.5 -- true", "hosts are 0 to 1"),
        ("--hosts 2 --rate 1Gbit --delay 0 --dilation nan -- true", "no positive number"),
        ("--hosts 2 --rate 1Gbit --delay 0 --mtu 100000 -- true", "at most 65535"),
        ("--hosts 2 --rate 1Gbit --delay 0 --congestion nonsense -- true", "invalid choice"),
    ],
)
def test_mistakes(words: str, says: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(words.split())
    assert left.value.code == 2
    assert says in capfd.readouterr().err
