"""Hosts for ranks on one machine: network namespaces behind one switch, on links of a given rate.

Each host has one cable to a bridge, and tbf limits both ends of it: a host sends at most the rate,
and receives at most the rate. Nothing is delayed on purpose (this needs netem, which not every
kernel has): the latency is what this machine takes for a message.

No namespace gets a name, so nothing is in /run/netns: it lives as long as a process is in it. In
whatever way the ranks end, kill -9 included, the kernel takes links and bridge away.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
from collections.abc import Sequence

_CLONE_NEWNET = 0x40000000
_BURST_SECONDS = 250e-6  # of the rate, that an idle link lets through at once
_FRAME_BYTES = 1514
_PACKET_BYTES_MAX = 65536
_QUEUE_BYTES = 64 << 20  # more than TCP's windows: nothing is dropped
_TIMEOUT = 20.0

_libc = ctypes.CDLL(None, use_errno=True)


def address(host: int) -> str:
    """Return the address of a host."""
    return f"10.231.{host // 200}.{host % 200 + 1}"


@functools.cache
def why_not() -> str:
    """Return why hosts cannot be made here, and what to do; empty where they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in ("ip", "tc", "unshare") if shutil.which(tool) is None]
    if missing:
        return f"no {' and no '.join(missing)}: apt install iproute2 util-linux"
    trial = (
        "ip link add port0 type veth peer name port1 && ip link add switch type bridge"
        " && tc qdisc add dev port0 root tbf rate 1mbit burst 5k limit 10k"
    )
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", trial],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=False,
    )
    return f"no namespaces, veth, bridge or tbf: {done.stderr.strip()}" if done.returncode else ""


@functools.cache
def why_no_emulation() -> str:
    """Return why this machine admits no hosts of allreduce.emulate; empty where it does.

    Asks none of our own code: a fault there must not look like a machine that cannot.
    """
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "/dev/net/tun is missing, or not for this user"
    if shutil.which("unshare") is None:
        return "no unshare: apt install util-linux"
    spaces = ["--net", "--mount", "--pid", "--fork", "--uts", "--ipc", "--mount-proc"]
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    done = subprocess.run(
        ["unshare", *user, *spaces, "true"], capture_output=True, text=True, check=False
    )
    return f"no namespaces: {done.stderr.strip()}" if done.returncode else ""


def fork_hosts(count: int, rate: float, *, ring: bool = False) -> int:
    """Become `count` processes, each on a host of its own; return the number of each, here 0.

    rate: bits per second of each link, in each direction. With `ring` there is no switch: each
    host has a cable to the next and one to the last, and passes on what is for others.
    """
    hosts = [_new() for _ in range(count)]
    if ring:
        _build_ring(hosts, rate)
    else:
        _build(_new(), hosts, rate)
    number = next((h for h in range(1, count) if os.fork() == 0), 0)
    _enter(hosts[number])
    for host in hosts:  # that of the switch stays open: no process is in there
        os.close(host)
    return number


def _new() -> int:
    """Enter a new namespace; return a descriptor of it."""
    _check(_libc.unshare(_CLONE_NEWNET))
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


def _enter(namespace: int) -> None:
    _check(_libc.setns(namespace, _CLONE_NEWNET))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _shape(rate: float) -> tuple[int, str]:
    """Return the largest packet for a link of that rate, and tbf's words for it."""
    # Less than 250 us, and late timers would cost a part of the rate. Yet a link that was idle for
    # so long lets as much through at once: latencies below this are hidden where bytes are many.
    packet = min(_PACKET_BYTES_MAX, max(2 * _FRAME_BYTES, int(rate / 8 * _BURST_SECONDS)))
    burst = packet + packet // 16 + _FRAME_BYTES  # headers of the frames that a packet becomes
    return packet, f"root tbf rate {rate:.0f}bit burst {burst} limit {_QUEUE_BYTES}"


def _build_ring(hosts: Sequence[int], rate: float) -> None:
    packet, shape = _shape(rate)
    count = len(hosts)
    here = f"/proc/{os.getpid()}/fd"
    for number, host in enumerate(hosts):
        peer = f"type veth peer name eth1 netns {here}/{hosts[(number + 1) % count]}"
        _batch(host, "ip", [f"link add eth0 {peer}"])
    for number, host in enumerate(hosts):
        up = ["link set lo up"]
        up += [f"link set {cable} gso_max_size {packet} up" for cable in ("eth0", "eth1")]
        _batch(host, "ip", [*up, f"address add {address(number)}/32 dev lo"])
        _batch(host, "tc", [f"qdisc add dev {cable} {shape}" for cable in ("eth0", "eth1")])
        with open("/proc/sys/net/ipv4/ip_forward", "w") as forward:
            forward.write("1")
    for number, host in enumerate(hosts):
        routes = []
        for steps in range(1, count):
            cable, way = ("eth0", 1) if 2 * steps <= count else ("eth1", -1)
            there, next_ = address((number + steps) % count), address((number + way) % count)
            routes.append(f"route add {there} via {next_} dev {cable} onlink src {address(number)}")
        _batch(host, "ip", routes)


def _build(switch: int, hosts: Sequence[int], rate: float) -> None:
    packet, shape = _shape(rate)
    numbers = range(len(hosts))
    here = f"/proc/{os.getpid()}/fd"
    _batch(switch, "ip", ["link add switch type bridge", "link set switch up"])
    cables = [f"link add port{h} type veth peer name eth0 netns {here}/{hosts[h]}" for h in numbers]
    _batch(switch, "ip", [*cables, *(f"link set port{h} master switch up" for h in numbers)])
    _batch(switch, "tc", [f"qdisc add dev port{h} {shape}" for h in numbers])
    for number, host in enumerate(hosts):
        up = f"link set eth0 gso_max_size {packet} up"
        _batch(host, "ip", ["link set lo up", f"address add {address(number)}/16 dev eth0", up])
        _batch(host, "tc", [f"qdisc add dev eth0 {shape}"])


def _batch(namespace: int, tool: str, lines: Sequence[str]) -> None:
    """Run lines of `ip` or `tc` in a namespace."""
    _enter(namespace)
    text = "".join(line + "\n" for line in lines)
    done = subprocess.run(
        [tool, "-batch", "-"],
        input=text,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=False,
    )
    if done.returncode != 0:
        raise OSError(f"{tool}: {done.stderr.strip()} in\n{text}")
