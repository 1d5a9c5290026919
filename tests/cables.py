"""Hosts on one machine whose cables can be pulled: network namespaces behind one switch."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

IFACE = "eth0"  # of each host


class Hosts:
    """Some hosts, a switch between them, and ways to cut one off."""

    def __init__(self, count: int) -> None:
        self._switch = f"hier-{os.getpid()}-switch"
        self.names = [f"hier-{os.getpid()}-{number}" for number in range(count)]

    def build(self) -> None:
        """Make the namespaces; CalledProcessError where that is impossible."""
        for name in (self._switch, *self.names):
            _run("ip", "netns", "add", name)
        _run("ip", "-n", self._switch, "link", "add", "switch", "type", "bridge")
        _run("ip", "-n", self._switch, "link", "set", "switch", "up")
        for number, name in enumerate(self.names):
            port = f"port{number}"
            ends = [port, "type", "veth", "peer", "name", IFACE, "netns", name]
            _run("ip", "-n", self._switch, "link", "add", *ends)
            _run("ip", "-n", self._switch, "link", "set", port, "master", "switch", "up")
            _run("ip", "-n", name, "link", "set", "lo", "up")
            _run("ip", "-n", name, "address", "add", f"10.231.78.{number + 1}/24", "dev", IFACE)
            _run("ip", "-n", name, "link", "set", IFACE, "up")

    def remove(self) -> None:
        """Remove them all."""
        for name in (self._switch, *self.names):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=20)

    def join(self, one: int, other: int, interface: str, network: str) -> None:
        """Join two hosts by one more cable, of a network such as "10.231.79"."""
        ends = [f"name {interface} netns {self.names[host]}".split() for host in (one, other)]
        _run("ip", "link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        for host in (one, other):
            address = f"{network}.{host + 1}/24"
            _run("ip", "-n", self.names[host], "address", "add", address, "dev", interface)
            _run("ip", "-n", self.names[host], "link", "set", interface, "up")

    def command(self, host: int) -> list[str]:
        """Return the words before a command that is to run on a host."""
        return ["ip", "netns", "exec", self.names[host]]

    def pull_cable(self, host: int) -> None:
        """The host's interface stays up, without a carrier."""
        _run("ip", "-n", self._switch, "link", "set", f"port{host}", "down")

    def take_down(self, host: int) -> None:
        """The host has no route any more."""
        _run("ip", "-n", self.names[host], "link", "set", IFACE, "down")

    def deafen(self, host: int) -> None:
        """The host hears nothing; what it sends arrives."""
        self._drop(host, "input", "iif")

    def silence(self, host: int) -> None:
        """Nobody hears the host; it hears the others."""
        self._drop(host, "output", "oif")

    def _drop(self, host: int, hook: str, which: str) -> None:
        rules = (
            f"table inet cut {{ chain c {{ type filter hook {hook} priority 0; "
            f"{which}name {IFACE} drop; }}; }}"
        )
        _run("ip", "netns", "exec", self.names[host], "nft", rules)


# How a host is cut off.
WAYS: dict[str, Callable[[Hosts, int], None]] = {
    "cable pulled": Hosts.pull_cable,
    "interface down": Hosts.take_down,
    "hears nothing": Hosts.deafen,
    "is not heard": Hosts.silence,
}


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=20)


@contextmanager
def connected(count: int) -> Iterator[Hosts]:
    """Hosts, gone after the test. Skips it where there can be none."""
    missing = [tool for tool in ("ip", "nft") if shutil.which(tool) is None]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"network namespaces need root, iproute2 and nftables; missing: {missing}")
    hosts = Hosts(count)
    try:
        try:
            hosts.build()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr!r}")
        yield hosts
    finally:
        hosts.remove()
