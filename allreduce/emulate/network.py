"""What a network is: hosts, the rate of their cables, the delay between them; in words too."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import asdict, dataclass

__all__ = [
    "HOSTS_MAX",
    "Network",
    "delay_text",
    "parse_delay",
    "parse_rate",
    "parse_share",
    "parse_slow_host",
    "rate_text",
]

HOSTS_MAX = 1024
_BITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
_NUMBER = r"(\d+(?:\.\d+)?)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A switch and the hosts behind it.

    Times and rates are those of the network that is emulated. It runs `dilation` times slower:
    `slowed_rate` and `slowed_delay` are what the clock of this machine shows.

    Args:
        rate: bits per second of each host's cable, in each direction.
        delay: seconds from host to host, one way, besides what the rate takes.
        jitter: seconds: a packet takes up to so much longer. Packets of a host to another host
            stay in order.
        loss: the part of all packets that is lost, 0 to 1.
        slow_hosts: (host, share): the host's cable has that share of the rate.
        queue: bytes that wait in front of a host's cable at most.
        mtu: bytes of the largest packet.
        congestion: TCP's congestion control on all hosts.
    """

    hosts: int
    rate: float
    delay: float
    dilation: float = 1.0
    jitter: float = 0.0
    loss: float = 0.0
    slow_hosts: tuple[tuple[int, float], ...] = ()
    queue: int = 16 << 20
    mtu: int = 9000
    congestion: str = "reno"
    seed: int = 0

    def slowed_rate(self, host: int) -> float:
        """Return the bytes per second of a host's cable here."""
        return self.rate / 8 / self.dilation * dict(self.slow_hosts).get(host, 1.0)

    def slowed_delay(self) -> float:
        """Return the seconds from host to host here."""
        return self.delay * self.dilation

    def slowed_jitter(self) -> float:
        """Return the seconds by which a packet may take longer here."""
        return self.jitter * self.dilation

    def address(self, host: int) -> str:
        """Return the IPv4 address of a host."""
        return f"10.231.{host // 250}.{host % 250 + 1}"

    def to_json(self) -> str:
        """Return it as one word of a command line."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Network:
        """Return what `to_json` has written."""
        fields = json.loads(text)
        fields["slow_hosts"] = tuple((host, share) for host, share in fields["slow_hosts"])
        return Network(**fields)

    def __str__(self) -> str:
        text = f"{self.hosts} hosts, {rate_text(self.rate)}, {delay_text(self.delay)} a way"
        if self.jitter:
            text += f" and up to {delay_text(self.jitter)} more"
        if self.loss:
            text += f", {self.loss:.3g} of the packets lost"
        for host, share in self.slow_hosts:
            text += f", host {host} at {share:g} of the rate"
        if self.dilation != 1:
            slowed = rate_text(self.rate / self.dilation), delay_text(self.slowed_delay())
            text += f", {self.dilation:g} times slower: {slowed[0]}, {slowed[1]}"
        return f"{text}, {self.congestion}, packets of {self.mtu} B"


def rate_text(rate: float) -> str:
    """Return bits per second in words."""
    unit = next((u for u in ("t", "g", "m", "k") if rate >= _BITS[u]), "")
    return f"{rate / _BITS[unit]:.4g} {unit.upper() if unit != 'k' else unit}bit/s"


def delay_text(seconds: float) -> str:
    """Return seconds in words."""
    unit = next((u for u in ("s", "ms", "us") if seconds >= _SECONDS[u]), "ns")
    return f"{seconds / _SECONDS[unit]:.4g} {unit}"


def parse_rate(text: str) -> float:
    """Return bits per second: 50Gbit, 200Mbit/s, 1.5G."""
    match = re.fullmatch(_NUMBER + r"\s*([kmgt]?)(?:bit|bps)?(?:/s)?", text, re.IGNORECASE)
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no rate; write 50Gbit or 200Mbit")
    return float(match[1]) * _BITS[match[2].lower()]


def parse_delay(text: str) -> float:
    """Return seconds: 40us, 2ms, 0."""
    match = re.fullmatch(_NUMBER + r"\s*(ns|us|ms|s)", text)
    if text == "0":
        return 0.0
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 40us or 2ms")
    return float(match[1]) * _SECONDS[match[2]]


def parse_share(text: str) -> float:
    """Return a part of a whole: 0.01 or 1%."""
    match = re.fullmatch(_NUMBER + "(%?)", text)
    share = float(match[1]) / (100 if match[2] else 1) if match else -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share; write 0.01 or 1%")
    return share


def parse_slow_host(text: str) -> tuple[int, float]:
    """Return a host and the share of the rate that it has: 7:0.5."""
    host, colon, share = text.partition(":")
    if not (colon and host.isdecimal() and parse_share(share) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no host and its share; write 7:0.5")
    return int(host), parse_share(share)
