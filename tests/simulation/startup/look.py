"""What a start-up must not show."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from allreduce.errors import PeerError, SystemCallError, Timeout, UsageError
from allreduce.rendezvous.connect import Connections

from .scenario import HARMLESS
from .world import BEGIN

if TYPE_CHECKING:
    from .life import Life

SLACK = 3.0  # seconds: rank 0 waits 2 for others to read its error, callers 2 for a listener
UNDER_WAY = 0.05  # seconds within which a message has arrived


def at(life: Life) -> str:
    """Return what is wrong; "" if nothing is."""
    for check in (ends, errors, found, agreement):
        if wrong := check(life):
            return wrong
    return ""


def ends(life: Life) -> str:
    """Each rank comes back in time, with connections or an error of ours."""
    slow = sum(fault.lasts for fault in life.scenario.faults if fault.kind in ("late", "pause"))
    for rank in living(life):
        result, ended = life.ranks[rank].result, life.ranks[rank].ended
        if ended is None:
            return f"rank {rank} hangs"
        if ended > due(life, rank) + SLACK + slow:
            return f"rank {rank} came back after {ended - BEGIN:.1f} s: {result!r}"
        if not isinstance(result, Connections | Timeout | PeerError | SystemCallError | UsageError):
            return f"rank {rank} ended with {result!r}"
    return ""


def due(life: Life, rank: int) -> float:
    """When a rank has its connections or hears of what is wrong, apart from who is slow.

    Rank 0 does not wait for those who come late to hear of an error.
    """
    faults = [fault for fault in life.scenario.faults if fault.kind not in HARMLESS]
    if not faults:
        return BEGIN
    if life.scenario.of("late", rank) or life.scenario.of("pause", rank):
        return BEGIN + life.timeout
    return max(fault.seen_at or BEGIN + life.timeout for fault in faults)


def errors(life: Life) -> str:
    """Who fails names a cause, or a rank that has failed; and closes what he had."""
    scenario = life.scenario
    failed = {r for r in living(life) if not isinstance(life.ranks[r].result, Connections)}
    if failed and all(fault.kind in HARMLESS for fault in scenario.faults):
        return told(life, failed, "failed without a cause")
    culprits = failed.union(*(fault.culprits for fault in scenario.faults))
    for rank in failed:
        text = str(life.ranks[rank].result)
        if life.ranks[rank].owned:
            return f"rank {rank} failed and left sockets open: {text}"
        named = {
            int(number)
            for numbers in re.findall(r"\branks? (\d+(?:(?:, | and )\d+)*)", text)
            for number in re.findall(r"\d+", numbers)
        }
        of_store = bool(scenario.of("store")) and "store" in text
        own = bool(scenario.of("memory", rank)) and "memory" in text
        if not (named & (culprits - {rank}) or of_store or own):
            return told(life, {rank}, "names nobody who is to blame")
    return ""


def found(life: Life) -> str:
    """The ends of each connection belong together, and nothing else is open."""
    whole = {
        r: rank.result for r, rank in enumerate(life.ranks) if isinstance(rank.result, Connections)
    }
    for rank, connections in whole.items():
        open_now = {sock.number: sock for sock in life.ranks[rank].owned}
        ours = {fd for peer in whole for fd in sockets(connections, peer)}
        ours |= {link.number for link in connections.fd_links}
        if len(whole) == life.scenario.world_size and set(open_now) != ours:
            return f"rank {rank} has other sockets open than those of its connections"
        for peer, other in whole.items():
            mine, theirs = sockets(connections, peer), sockets(other, rank)
            if len(mine) != len(theirs) or (peer != rank and not mine):
                return f"ranks {rank} and {peer} have not as many connections to each other"
            for fd, end_fd in zip(mine, theirs, strict=True):
                end = fd in open_now and open_now[fd].peer
                if not end or (end.owner, end.number) != (life.ranks[peer], end_fd):
                    return f"a connection of rank {rank} does not end at rank {peer}"
    return ""


def sockets(connections: Connections, peer: int) -> list[int]:
    """What a rank has to talk to another."""
    control = [connections.control[peer]] if peer in connections.control else []
    return control + connections.data.get(peer, [])


def agreement(life: Life) -> str:
    """All have their connections, of one group, or none has."""
    whole = {r: life.ranks[r].result for r in living(life)}
    failed = {r for r, result in whole.items() if not isinstance(result, Connections)}
    for rank in failed:
        del whole[rank]
    if not whole:
        return ""
    if failed:
        first = min(life.ranks[r].ended or 0.0 for r in whole)
        if all(BEGIN + fault.at < first - UNDER_WAY for fault in life.scenario.faults):
            return told(life, failed, "failed although others did not")
    if len({connections.group_id for connections in whole.values()}) != 1:
        return "ranks are of different groups"
    for rank, connections in whole.items():
        if [n == connections.node_of_rank[rank] for n in connections.node_of_rank] != [
            n == life.scenario.node_of_rank[rank] for n in life.scenario.node_of_rank
        ]:
            return f"rank {rank} sees the nodes {connections.node_of_rank}"
    memory = {
        (
            connections.node_of_rank[rank],
            os.fstat(connections.arena_fd).st_ino if connections.arena_fd >= 0 else 0,
        )
        for rank, connections in whole.items()
        if len(connections.local_ranks) > 1
    }
    if len(memory) != len({node for node, _ in memory}) or 0 in {inode for _, inode in memory}:
        return "ranks of a node do not share one memory"
    return ""


def living(life: Life) -> list[int]:
    """The ranks that came, and were not killed."""
    missing = {fault.rank for fault in life.scenario.of("missing")}
    return [r for r, rank in enumerate(life.ranks) if not rank.dead and r not in missing]


def told(life: Life, ranks: set[int], what: str) -> str:
    """Say it of these ranks, with their errors."""
    texts = [f"rank {rank}: {life.ranks[rank].result!r}" for rank in sorted(ranks)]
    return what + ": " + "; ".join(texts)
