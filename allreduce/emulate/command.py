"""The command line of `python -m allreduce.emulate`."""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from allreduce.commands.parser import Parser, at_least, parse_bytes
from allreduce.emulate.hosts import Host, shell_status
from allreduce.emulate.network import (
    HOSTS_MAX,
    Network,
    parse_delay,
    parse_rate,
    parse_share,
    parse_slow_host,
)
from allreduce.emulate.switch import Switch
from allreduce.errors import Error

__all__ = ["main"]

_CHECK = """
import sys
from allreduce.emulate import check, network
sys.exit(check.main(network.Network.from_json(sys.argv[1])))
"""

_EPILOG = """
Each host is a network namespace with its own host name, processes and shared memory, behind one
switch. The command runs once on each host, with the variables of a launcher set: one rank a host.
  python -m allreduce.emulate --hosts 4 --rate 10Gbit --delay 50us --dilation 20 -- \\
      python -m allreduce.bench -b 1K -e 4M
  python -m allreduce.emulate --hosts 2 --rate 1Gbit --delay 1ms -- sh -c \\
      'torchrun --nnodes $NNODES --node-rank $NODE_RANK --master-addr $MASTER_ADDR \\
       --master-port $MASTER_PORT --nproc-per-node 2 train.py'
--check measures what the hosts see, beside what was asked for. A host's own work is not slowed
down: with --dilation only the network is. The exit status is that of the first command that fails.
It needs root, or user namespaces and a /dev/net/tun that this user may open.
"""


def main(arguments: Sequence[str]) -> int:
    """Run a command on every host; return the exit status."""
    options, network = _parse(arguments)
    command = options.command
    if options.check:
        command = [sys.executable, "-c", _CHECK, network.to_json()]
    try:
        return _run(network, command, options.ranks_per_host)
    except (Error, OSError) as error:
        print(f"allreduce.emulate: {error}", file=sys.stderr)
        return 1


def _parser() -> Parser:
    parser = Parser(
        prog="python -m allreduce.emulate",
        description="Runs a command on each host of an emulated network.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--hosts", type=at_least(2), required=True, metavar="N", help=f"at most {HOSTS_MAX}")
    add("--rate", type=parse_rate, required=True, help="of each cable, both ways: 50Gbit")
    add("--delay", type=parse_delay, required=True, help="from host to host, one way: 40us")
    add(
        "--dilation",
        type=_positive,
        default=1.0,
        metavar="TIMES",
        help="how many times slower the network runs than asked for (default: 1)",
    )
    add("--jitter", type=parse_delay, default=0.0, help="a packet takes up to so much longer")
    add("--loss", type=parse_share, default=0.0, help="part of all packets that is lost: 0.1%%")
    add(
        "--slow-host",
        type=parse_slow_host,
        action="append",
        default=[],
        metavar="HOST:SHARE",
        help="its cable has that share of the rate: 7:0.5; may be given again",
    )
    add("--queue", type=parse_bytes, default=16 << 20, help="bytes before a cable (default: 16M)")
    add("--mtu", type=at_least(576), default=9000, help="bytes of a packet (default: 9000)")
    allowed = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control").read_text().split()
    add(
        "--congestion",
        choices=allowed,
        default="cubic" if "cubic" in allowed else "reno",
        help="TCP's congestion control: of those that the sysctl "
        "net.ipv4.tcp_allowed_congestion_control lists (default: %(default)s)",
    )
    add("--seed", type=at_least(0), default=0, help="of losses and jitter (default: 0)")
    add(
        "--ranks-per-host",
        type=at_least(1),
        default=1,
        metavar="K",
        help="how often the command runs on each host (default: 1)",
    )
    add("--check", action="store_true", help="measure the network itself, instead of a command")
    add("command", nargs="*", metavar="COMMAND", help="and its arguments, behind --")
    return parser


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return value


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, Network]:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.hosts > HOSTS_MAX:
        parser.error(f"--hosts {options.hosts}: at most {HOSTS_MAX}")
    if bool(options.command) == options.check:
        parser.error("give a command behind --, or --check")
    if options.check and options.ranks_per_host > 1:
        parser.error("--check runs once on each host: leave --ranks-per-host out")
    if options.mtu > 65535:
        parser.error(f"--mtu {options.mtu}: at most 65535")
    for host, _ in options.slow_host:
        if host >= options.hosts:
            parser.error(f"--slow-host {host}: hosts are 0 to {options.hosts - 1}")
    names = ("hosts", "rate", "delay", "dilation", "jitter", "loss", "queue", "mtu")
    network = Network(
        **{name: getattr(options, name) for name in names},
        slow_hosts=tuple(options.slow_host),
        congestion=options.congestion,
        seed=options.seed,
    )
    return options, network


def _run(network: Network, command: Sequence[str], ranks: int) -> int:
    signal.signal(signal.SIGTERM, _leave)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)  # two descriptors for each host
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    hosts: list[Host] = []
    switch = None
    try:
        for number in range(network.hosts):
            host = Host(network, number, command, ranks)
            hosts.append(host)  # one by one: those that are there must end if the next one fails
        switch = Switch(network, [host.tun for host in hosts])
        print(f"emulated: {network}", file=sys.stderr, flush=True)
        for host in hosts:
            host.go()
        return _wait(hosts, switch)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        for host in hosts:
            host.kill()


def _wait(hosts: Sequence[Host], switch: Switch) -> int:
    """Return the first status that is not 0, when all hosts have ended."""
    running = {host.process: host for host in hosts}
    status = 0
    while running:
        process, ended = os.wait()
        if process == switch.process:
            print("allreduce.emulate: the switch has failed", file=sys.stderr)
            return 1
        host = running.pop(process, None)
        code = os.waitstatus_to_exitcode(ended)
        if host and code:
            print(f"allreduce.emulate: host {host.number} ended with {code}", file=sys.stderr)
            status = status or shell_status(ended)
    report = switch.end()
    print(f"switch: {report or 'it has failed'}", file=sys.stderr)
    return status if report else status or 1


def _leave(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
