"""Findings: addresses, connections, packets, delay and rate between hosts."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from allreduce.doctor.findings import (
    Check,
    Examination,
    Finding,
    Severity,
    differing,
    ranks_text,
    verb,
)
from allreduce.doctor.probes import Rate

__all__ = ["NETWORK_CHECKS", "bandwidth_text", "slow_links", "time_text"]

SLOW_FACTOR = 4.0  # a link is slow below this part of the usual rate
_FAR_FACTOR, _FAR_SECONDS = 4.0, 0.001
_BUFFER_SHARE = 0.4  # of a buffer, that is under way when the buffer is what limits


def addresses(e: Examination) -> Iterator[Finding]:
    """Ranks that have no address to listen on; ranks of one node alone need none."""
    severity: Severity = "error" if max(e.node_of_rank) > 0 else "warning"
    found: dict[str, list[int]] = defaultdict(list)
    for rank, listening in sorted(e.listening.items()):
        if listening.error:
            found[listening.error].append(rank)
    for error, ranks in found.items():
        yield Finding(
            severity=severity,
            kind="address",
            ranks=tuple(ranks),
            text=f"{e.on(ranks)} {verb(ranks, 'has', 'have')} no address to listen on: {error}",
            remedy="docs/networks.md says which address a rank takes",
        )


def one_address(e: Examination) -> Iterator[Finding]:
    """Ranks of several hosts that listen on one address: only one host can have it."""
    for address, ranks in _shared_addresses(e).items():
        interfaces = sorted({e.listening[rank].interface for rank in ranks})
        yield Finding(
            severity="error",
            kind="same-address",
            ranks=tuple(ranks),
            text=f"{ranks_text(ranks)} are on several hosts, and all listen on {address} "
            f"({', '.join(interfaces)})",
            remedy="set ALLREDUCE_IFACE to the interface of the network between the hosts, or "
            "ALLREDUCE_HOST to each host's own address",
        )


def unreachable(e: Examination) -> Iterator[Finding]:
    """Listeners that hosts cannot connect to."""
    shared = {rank for ranks in _shared_addresses(e).values() for rank in ranks}
    failed: dict[int, dict[int, str]] = defaultdict(dict)
    for reach in e.reaches:
        silent = reach.callee in e.silent or reach.caller in e.silent
        if reach.error and not silent and reach.callee not in shared:
            failed[reach.callee][reach.caller] = reach.error
    alone = _callers_that_reach_nobody(e)
    for caller in alone:
        errors = sorted({by[caller] for by in failed.values() if caller in by})
        if errors:
            yield Finding(
                severity="error",
                kind="unreachable",
                ranks=(caller,),
                text=f"{e.at(caller)} can connect to no other host ({', '.join(errors)})",
                remedy="let TCP out of that host: its firewall, or the route of its interface",
            )
    for callee, by in failed.items():
        callers = sorted(set(by) - alone)
        if callers:
            yield _unreachable(e, callee, callers, by)


def _unreachable(
    e: Examination, callee: int, callers: Sequence[int], errors: dict[int, str]
) -> Finding:
    where = e.listening[callee]
    reasons = ", ".join(sorted({errors[caller] for caller in callers}))
    whom = "no other host" if len(callers) > 1 and _all_failed(e, callee) else ""
    who = (
        f"{whom or ranks_text(callers)} can reach"
        if whom
        else (f"{ranks_text(callers)} cannot reach")
    )
    return Finding(
        severity="error",
        kind="unreachable",
        ranks=(callee, *callers),
        text=f"{e.at(callee)} listens on {where.interface or 'an interface'} {where.address} "
        f"port {where.port} ({where.why}), which {who} ({reasons})",
        remedy="set ALLREDUCE_IFACE or ALLREDUCE_HOST there to the network between the hosts, or "
        f"open TCP ports {where.ports} between them",
    )


def _unreached(e: Examination) -> set[int]:
    """Return the ranks whose address is no good: that is what is said of them."""
    shared = {rank for ranks in _shared_addresses(e).values() for rank in ranks}
    return shared | {reach.callee for reach in e.reaches if reach.error}


def _all_failed(e: Examination, callee: int) -> bool:
    return all(reach.error for reach in e.reaches if reach.callee == callee)


def _callers_that_reach_nobody(e: Examination) -> set[int]:
    """Return callers that failed with each of several callees, whom others reached."""
    by_caller: dict[int, list[bool]] = defaultdict(list)
    reached = {reach.callee for reach in e.reaches if not reach.error}
    for reach in e.reaches:
        by_caller[reach.caller].append(bool(reach.error) and reach.callee in reached)
    return {caller for caller, failed in by_caller.items() if len(failed) > 1 and all(failed)}


def large_packets(e: Examination) -> Iterator[Finding]:
    """Paths on which small packets pass and large ones do not."""
    found: dict[int, list[int]] = defaultdict(list)
    for reach in e.reaches:
        if reach.large_error and not {reach.callee, reach.caller} & set(e.silent):
            found[reach.callee].append(reach.caller)
    for callee, callers in found.items():
        mtus = [f"{e.listening[r].mtu} on {e.at(r)}" for r in (*callers[:2], callee)]
        yield Finding(
            severity="error",
            kind="large-packets",
            ranks=(callee, *callers),
            text=f"from {ranks_text(callers)} to {e.at(callee)} small packets pass and large ones "
            f"are lost (MTU: {', '.join(mtus)})",
            remedy="set the MTU of the interfaces to what the whole path carries, or let ICMP "
            "'fragmentation needed' through",
        )


def mtus(e: Examination) -> Iterator[Finding]:
    """Interfaces with another MTU than most."""
    away = _unreached(e)
    values = {r: at.mtu for r, at in e.listening.items() if at.mtu and r not in away}
    if not values or not e.several_hosts or any(reach.large_error for reach in e.reaches):
        return
    common, others = differing(values)
    for mtu, ranks in others.items():
        interface = e.listening[ranks[0]].interface
        yield Finding(
            severity="warning",
            kind="mtu",
            ranks=tuple(ranks),
            text=f"{interface} of {e.on(ranks)} has MTU {mtu}, other ranks have {common}",
            remedy=f"ip link set {interface} mtu {common} there, if the network carries it",
        )


def routes(e: Examination) -> Iterator[Finding]:
    """Ranks whose packets to others leave by another address than they listen on."""
    found: dict[tuple[int, str], list[int]] = defaultdict(list)
    away = _unreached(e)
    for reach in e.reaches:
        mine = e.listening.get(reach.caller)
        if not mine or not mine.address or reach.error or reach.caller in away:
            continue
        if reach.leaves_by not in ("", mine.own_address):
            found[(reach.caller, reach.leaves_by)].append(reach.callee)
    for (caller, leaves_by), callees in found.items():
        mine = e.listening[caller]
        yield Finding(
            severity="warning",
            kind="route",
            ranks=(caller, *callees),
            text=f"{e.at(caller)} listens on {mine.interface} {mine.own_address}, but its packets "
            f"to {ranks_text(callees)} leave by {leaves_by}",
            remedy="set ALLREDUCE_IFACE on all hosts to the network that the job is to use",
        )


def usual_rate(rates: Sequence[Rate]) -> float:
    """Return the median over hosts of the fastest stream of each, 0 without any.

    One slow host makes every link of its own slow, which may be most links of a few hosts; the
    others still have one fast link each.
    """
    best: dict[int, float] = defaultdict(float)
    for rate in rates:
        for rank in (rate.source, rate.target):
            best[rank] = max(best[rank], rate.rate)
    return statistics.median_high(best.values()) if best else 0.0


def slow_links(rates: Sequence[Rate]) -> list[Rate]:
    """Return the streams that carried far less than the usual one."""
    usual = usual_rate(rates)
    return [rate for rate in rates if 0 < rate.rate * SLOW_FACTOR < usual]


def slow(e: Examination) -> Iterator[Finding]:
    """Links that are far slower than is usual."""
    links = [rate for rate in slow_links(e.rates) if not _limiting_buffer(e, rate)]
    usual = usual_rate(e.rates)
    while links:
        often = Counter(rank for link in links for rank in (link.source, link.target))
        worst, times = min(often.items(), key=lambda item: (-item[1], -item[0]))
        its = [link for link in links if worst in (link.source, link.target)]
        if times == 1 or len({frozenset((link.source, link.target)) for link in its}) == 1:
            its = links[:1]
        slowest = min(its, key=lambda link: link.rate)
        yield Finding(
            severity="warning",
            kind="slow-link",
            ranks=tuple(sorted({rank for link in its for rank in (link.source, link.target)})),
            text=f"{_links_text(e, worst, its)}: {bandwidth_text(slowest.rate)}, usual "
            f"are {bandwidth_text(usual)} (median of hosts)",
            remedy="look at the cable, the port's negotiated speed (ethtool) and other traffic",
        )
        links = [link for link in links if link not in its]


def _links_text(e: Examination, worst: int, links: Sequence[Rate]) -> str:
    if len(links) == 1:
        return f"the link from {e.at(links[0].source)} to {e.at(links[0].target)} is slow"
    ways = {
        "from": [r for r in links if r.source == worst],
        "to": [r for r in links if r.target == worst],
    }
    way = " and ".join(name for name, some in ways.items() if some)
    return f"links {way} {e.at(worst)} are slow"


def far(e: Examination) -> Iterator[Finding]:
    """Hosts whose shortest round trip to any other is far longer than is usual.

    Single links are not judged: one answer that a busy host gave late would look like a long link.
    """
    shortest: dict[int, float] = {}
    for reach in e.reaches:
        if not reach.error:
            for rank in (reach.caller, reach.callee):
                shortest[rank] = min(shortest.get(rank, reach.round_trip), reach.round_trip)
    if len(shortest) < 3:
        return
    usual = statistics.median_low(shortest.values())
    for rank, seconds in shortest.items():
        if seconds > max(_FAR_FACTOR * usual, usual + _FAR_SECONDS):
            yield Finding(
                severity="warning",
                kind="far-host",
                ranks=(rank,),
                text=f"{e.at(rank)} is far from all other hosts: the shortest round trip takes "
                f"{time_text(seconds)}, usual are {time_text(usual)} (median of hosts)",
                remedy="see where it stands: another rack, another zone, a detour",
            )


def broken_streams(e: Examination) -> Iterator[Finding]:
    """Pairs that connected, and whose stream broke."""
    for rate in e.rates:
        if rate.rate == 0 and not {rate.source, rate.target} & set(e.silent):
            yield Finding(
                severity="error",
                kind="stream",
                ranks=(rate.source, rate.target),
                text=f"a stream from {e.at(rate.source)} to {e.at(rate.target)} broke, though "
                "they can connect",
                remedy="look for lost packets (ip -s link, nstat) and for firewalls between",
            )


def _limiting_buffer(e: Examination, rate: Rate) -> str:
    """Return "send" or "receive" where that buffer is full of what is under way, else ""."""
    under_way = rate.rate * rate.round_trip
    for name, rank in (("send", rate.source), ("receive", rate.target)):
        size = _buffer(e, name, rank)
        if 0 < size * _BUFFER_SHARE < under_way:
            return name
    return ""


def _buffer(e: Examination, name: str, rank: int) -> int:
    facts = e.facts.get(rank)
    if facts is None:
        return 0
    return facts.send_buffer if name == "send" else facts.receive_buffer


def buffers(e: Examination) -> Iterator[Finding]:
    """Hosts whose buffers hold less than the network."""
    found: dict[tuple[str, int], Rate] = {}
    for rate in e.rates:
        if name := _limiting_buffer(e, rate):
            found[(name, rate.source if name == "send" else rate.target)] = rate
    for (name, rank), rate in found.items():
        yield Finding(
            severity="warning",
            kind=f"{name}-buffer",
            ranks=(rank,),
            text=f"the {name} buffer of {e.at(rank)} ({_buffer(e, name, rank) >> 10} KiB) limits "
            f"a stream to {bandwidth_text(rate.rate)} at a round trip of "
            f"{time_text(rate.round_trip)}",
            remedy=_BUFFER_REMEDIES[name],
        )


_BUFFER_REMEDIES = {
    "send": "raise it there: sysctl -w net.core.wmem_max=16777216 "
    'net.ipv4.tcp_wmem="4096 16384 33554432"',
    "receive": 'raise it there: sysctl -w net.ipv4.tcp_rmem="4096 131072 33554432"',
}


def _shared_addresses(e: Examination) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for rank, listening in sorted(e.listening.items()):
        if listening.address and rank in e.facts:
            found[listening.address].append(rank)
    return {
        address: ranks
        for address, ranks in found.items()
        if len({e.host_of[rank] for rank in ranks}) > 1
    }


def bandwidth_text(rate: float) -> str:
    """Return bytes a second as bits: "9.4 Gbit/s"."""
    bits = 8 * rate
    unit, name = (1e9, "Gbit/s") if bits >= 1e9 else (1e6, "Mbit/s")
    return f"{bits / unit:.3g} {name}"


def time_text(seconds: float) -> str:
    """Return "85 us" or "2.1 ms"."""
    return f"{seconds * 1e6:.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:.3g} ms"


NETWORK_CHECKS: tuple[Check, ...] = (
    addresses,
    one_address,
    unreachable,
    large_packets,
    mtus,
    routes,
    slow,
    far,
    broken_streams,
    buffers,
)
