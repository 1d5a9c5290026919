"""Findings: limits, memory, cores and names of each host."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator

from allreduce import _C
from allreduce.doctor.facts import NO_LIMIT
from allreduce.doctor.findings import Check, Examination, Finding, differing, ranks_text, verb
from allreduce.rendezvous.connect import connect_option
from allreduce.rendezvous.mesh_builder import links_of

__all__ = ["HOST_CHECKS", "descriptors_needed"]

_SPARE, _LISTENER = 16, 1
_ROUND_TO = 100
_LOCKED_ENOUGH = 64 << 20
_CLOCK_SECONDS = 1.0
_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def descriptors_needed(e: Examination, rank: int, connect_all: bool) -> int:
    """Return how many descriptors a rank needs at the start of the job, with those open now.

    Open now are the connections to the store too; the library adds a listener before it counts.
    """
    facts, node_of_rank = e.facts[rank], e.node_of_rank
    local = node_of_rank.count(node_of_rank[rank])
    links = links_of(rank, node_of_rank, facts.lanes, connect_all)
    return facts.descriptors_open + _LISTENER + len(links) + local + _SPARE


def descriptors(e: Examination) -> Iterator[Finding]:
    """Ranks that may not open as many files as the job needs."""
    for rank, facts in sorted(e.facts.items()):
        if "ALLREDUCE_CONNECT" in facts.problems:
            continue
        asked = {"ALLREDUCE_CONNECT": facts.variables.get("ALLREDUCE_CONNECT", "")}
        everything = connect_option(None, e.world_size, asked) == "all"
        needed = descriptors_needed(e, rank, everything)
        most = descriptors_needed(e, rank, True)
        if facts.descriptors_limit >= most:
            continue
        short = facts.descriptors_limit < needed
        wanted = -(-(most + _ROUND_TO) // _ROUND_TO) * _ROUND_TO
        yield Finding(
            severity="error" if short else "warning",
            kind="descriptors" if short else "descriptors-later",
            ranks=(rank,),
            text=f"{e.at(rank)} may open {facts.descriptors} files, this job needs "
            + (f"{needed}" if short else f"{most} once the rank has sent to all others"),
            remedy=f"ulimit -n {wanted} there (or LimitNOFILE= of its service)",
        )


def locked_memory(e: Examination) -> Iterator[Finding]:
    """Ranks that may lock less memory than others, or too little for network cards and GPUs."""
    common, _ = differing({r: f.locked_memory_limit for r, f in e.facts.items()})
    for rank, facts in sorted(e.facts.items()):
        limit = facts.locked_memory_limit
        if limit < common or (facts.fast_network_cards and limit < _LOCKED_ENOUGH):
            there = f"rank {min(r for r in e.facts if e.facts[r].locked_memory_limit == common)}"
            other = f", {there} {_bytes(common)}" if limit < common else ""
            yield Finding(
                severity="warning",
                kind="locked-memory",
                ranks=(rank,),
                text=f"{e.at(rank)} may lock {_bytes(limit)} of memory{other}",
                remedy="ulimit -l unlimited there; drivers of GPUs and InfiniBand need it",
            )


def memory(e: Examination) -> Iterator[Finding]:
    """Nodes whose host has no room for their shared memory."""
    members: dict[int, list[int]] = defaultdict(list)
    for rank in e.facts:
        members[e.node_of_rank[rank]].append(rank)
    for ranks in members.values():
        if len(ranks) < 2:
            continue
        size = _C.arena_bytes(len(ranks), e.facts[ranks[0]].lanes)
        least = min(ranks, key=lambda rank: e.facts[rank].memory)
        if e.facts[least].memory < size:
            yield Finding(
                severity="error",
                kind="memory",
                ranks=tuple(ranks),
                text=f"{e.on(ranks)} may need {_bytes(size)} of shared memory, and "
                f"{_bytes(e.facts[least].memory)} are free on {e.facts[least].host}",
                remedy="free memory there, or raise the memory limit of the container",
            )


def users(e: Examination) -> Iterator[Finding]:
    """Nodes whose ranks run as several users, who refuse each other's Unix sockets."""
    found: dict[Hashable, dict[int, int]] = defaultdict(dict)
    for rank, facts in e.facts.items():
        found[facts.identity][rank] = facts.user
    for of_node in found.values():
        common, others = differing(of_node)
        for user, ranks in others.items():
            yield Finding(
                severity="error",
                kind="users",
                ranks=tuple(ranks),
                text=f"{e.on(ranks)} {verb(ranks, 'runs', 'run')} as user {user}, other ranks of "
                f"that host as user {common}",
                remedy="run all ranks of a host as one user",
            )


def pinned(e: Examination) -> Iterator[Finding]:
    """Ranks that are pinned to the same cores, fewer than they are."""
    found: dict[Hashable, list[int]] = defaultdict(list)
    for rank, facts in e.facts.items():
        if len(facts.cores) < facts.host_cores:
            found[(facts.boot, tuple(facts.cores))].append(rank)
    for ranks in found.values():
        facts = e.facts[ranks[0]]
        if len(ranks) > len(facts.cores):
            cores = ranks_text(facts.cores).replace("rank", "core")
            yield Finding(
                severity="warning",
                kind="pinned",
                ranks=tuple(sorted(ranks)),
                text=f"{e.on(ranks)} are all pinned to {cores} of the {facts.host_cores} cores "
                "there",
                remedy="give each rank a core of its own (--cpu-bind of srun, --bind-to of mpirun)",
            )


def quota(e: Examination) -> Iterator[Finding]:
    """Containers that get less time than their ranks have cores for."""
    found: dict[Hashable, list[int]] = defaultdict(list)
    for rank, facts in e.facts.items():
        if facts.quota:
            found[facts.identity].append(rank)
    for ranks in found.values():
        facts = e.facts[ranks[0]]
        usable = len(set().union(*(e.facts[rank].cores for rank in ranks)))
        if facts.quota < min(len(ranks), usable):
            yield Finding(
                severity="warning",
                kind="cpu-quota",
                ranks=tuple(ranks),
                text=f"{e.on(ranks)} together may use {facts.quota:g} cores' worth of time, "
                f"though they see {usable} cores",
                remedy="raise the container's CPU limit, or start fewer ranks there",
            )


def numa(e: Examination) -> Iterator[Finding]:
    """Ranks that are pinned to cores of several NUMA nodes."""
    for rank, facts in sorted(e.facts.items()):
        if len(facts.numa_nodes) > 1 and len(facts.cores) < facts.host_cores:
            text = ", ".join(map(str, facts.numa_nodes))
            yield Finding(
                severity="warning",
                kind="numa",
                ranks=(rank,),
                text=f"{e.at(rank)} is pinned to cores of NUMA nodes {text}",
                remedy="pin it to the cores of one NUMA node",
            )


def containers(e: Examination) -> Iterator[Finding]:
    """Machines whose ranks are in several network namespaces, and so use TCP among themselves."""
    found: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for rank, facts in e.facts.items():
        if facts.boot and not facts.emulated:
            found[facts.boot][facts.network].append(rank)
    for spaces in found.values():
        if len(spaces) > 1:
            groups = " and ".join(ranks_text(ranks) for ranks in spaces.values())
            yield Finding(
                severity="warning",
                kind="containers",
                ranks=tuple(sorted(rank for ranks in spaces.values() for rank in ranks)),
                text=f"{groups} are on one machine, in network namespaces of their own: they use "
                "TCP in place of shared memory",
                remedy="start the containers with the host's network and host name, or put all "
                "ranks of a machine into one container",
            )


def names(e: Examination) -> Iterator[Finding]:
    """Several machines with one host name."""
    found: dict[str, set[str]] = defaultdict(set)
    for facts in e.facts.values():
        found[facts.host].add(facts.boot)
    for host, boots in found.items():
        if len(boots) > 1:
            ranks = sorted(rank for rank, facts in e.facts.items() if facts.host == host)
            yield Finding(
                severity="warning",
                kind="host-name",
                ranks=tuple(ranks),
                text=f"{ranks_text(ranks)} are on {len(boots)} machines that all have the name "
                f"{host}",
                remedy="give each machine its own name: messages name hosts, and so do launchers",
            )


def loopback_names(e: Examination) -> Iterator[Finding]:
    """Hosts whose own name means loopback."""
    if not e.several_hosts:
        return
    found: dict[str, list[int]] = defaultdict(list)
    for rank, facts in e.facts.items():
        if facts.name_is_loopback:
            found[facts.host].append(rank)
    for host, ranks in found.items():
        addresses = ", ".join(e.facts[ranks[0]].name_addresses)
        yield Finding(
            severity="warning",
            kind="loopback-name",
            ranks=tuple(ranks),
            text=f"on the host of {ranks_text(ranks)} the name {host} means {addresses}, which no "
            "other host can reach",
            remedy="map the name to the host's address in /etc/hosts there; Gloo and torchrun's "
            "store go by the name",
        )


def clocks(e: Examination) -> Iterator[Finding]:
    """Hosts whose clock is off, as rank 0 sees it."""
    for reach in e.reaches:
        if reach.caller == 0 and not reach.error and abs(reach.clock_offset) > _CLOCK_SECONDS:
            way = "ahead of" if reach.clock_offset > 0 else "behind"
            yield Finding(
                severity="warning",
                kind="clock",
                ranks=(reach.callee,),
                text=f"the clock of {e.at(reach.callee)} is {abs(reach.clock_offset):.1f} s {way} "
                "that of rank 0",
                remedy="set the clocks by NTP: logs are hard to compare",
            )


def congestion(e: Examination) -> Iterator[Finding]:
    """Hosts with another default of TCP's congestion control."""
    if not e.several_hosts or any(
        f.variables.get("ALLREDUCE_TCP_CONGESTION") for f in e.facts.values()
    ):
        return
    values = {rank: facts.congestion for rank, facts in e.facts.items() if facts.congestion}
    if not values:
        return
    common, others = differing(values)
    for name, ranks in others.items():
        yield Finding(
            severity="warning",
            kind="congestion",
            ranks=tuple(ranks),
            text=f"TCP's congestion control is {name} on {e.on(ranks)}, {common} elsewhere",
            remedy="set ALLREDUCE_TCP_CONGESTION on all ranks, or the sysctl "
            "net.ipv4.tcp_congestion_control on all hosts",
        )


def _bytes(count: int) -> str:
    if count >= NO_LIMIT:
        return "any amount"
    for unit, name in _UNITS:
        if count >= unit:
            return f"{count / unit:.4g} {name}"
    return f"{count} B"


HOST_CHECKS: tuple[Check, ...] = (
    descriptors,
    locked_memory,
    memory,
    users,
    pinned,
    quota,
    numa,
    containers,
    names,
    loopback_names,
    clocks,
    congestion,
)
