"""The steps of an examination, as every rank walks through them; rank 0 decides what comes next.

arrival   who is there at all
facts     what each rank knows of its host; back come the hosts
listen    where each rank listens; back come the addresses
reach     the lowest rank of each host calls all other hosts; back come rounds of pairs
rates     in each round, pairs of hosts send each other a stream; slow pairs have another turn
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from allreduce.doctor.agreement import AGREEMENT_CHECKS, ARRIVAL_CHECKS
from allreduce.doctor.facts import Facts, collect, unpack
from allreduce.doctor.findings import Examination, Finding
from allreduce.doctor.gathering import Gathering
from allreduce.doctor.host_findings import HOST_CHECKS
from allreduce.doctor.listening import Listening, listen
from allreduce.doctor.network_findings import NETWORK_CHECKS, slow_links
from allreduce.doctor.probes import (
    TOKEN_BYTES,
    Peer,
    Rate,
    Reach,
    Server,
    measure_rate,
    reach_all,
    rounds,
)
from allreduce.rendezvous.launcher_environment import Launch

__all__ = ["Steps", "findings_of"]

_AGAIN_PAIRS, _AGAIN_TIMES = 3, 2
_CALLS_SHARE = 0.8  # of a step's time, for calls to other hosts
_FACTS, _LISTEN, _REACH, _RATES = "facts", "listen", "reach", "rates"


class Steps:
    """One rank's walk. `examination` is what rank 0 has learned, at any time."""

    def __init__(
        self, gathering: Gathering, launch: Launch, *, seconds: float, with_rates: bool
    ) -> None:
        self._gathering = gathering
        self._rank, self._world_size = launch.rank, launch.world_size
        self._launcher = launch.launcher
        self._seconds, self._with_rates = seconds, with_rates
        self._node_of: dict[int, int] = {}
        self._peers: dict[int, Peer] = {}
        self._token = b""
        self._streamed: list[tuple[int, int]] = []  # (caller, callee)
        self._rates: list[Rate] = []

    def walk(self, arrival_seconds: float, route_to: str | None) -> None:
        """Go through all steps; what rank 0 learns is in `examination`."""
        self._gathering.arrive(socket.gethostname(), arrival_seconds)
        facts = collect(self._rank, self._world_size, self._launcher, os.environ)
        hosts = self._step(_FACTS, asdict(facts), self._tell_hosts)
        self._token = bytes.fromhex(hosts["token"])
        self._node_of = {int(rank): node for rank, node in hosts["nodes"].items()}
        mine = [r for r, node in sorted(self._node_of.items()) if node == self._node_of[self._rank]]
        found, listener = listen(
            hosts["one_host"],
            route_to,
            os.environ,
            bytes.fromhex(hosts["nonce"]),
            mine.index(self._rank),
        )
        with contextlib.ExitStack() as stack:
            if listener is not None:
                server = Server(self._rank, listener, self._token)
                stack.callback(server.close)
            self._probe(found)

    def _probe(self, mine: Listening) -> None:
        peers = self._step(_LISTEN, asdict(mine), _tell_addresses)
        self._node_of = {int(rank): self._node_of[int(rank)] for rank in peers}  # still there
        self._peers = {
            int(rank): Peer(rank=int(rank), address=address, port=port)
            for rank, (address, port) in peers.items()
            if address
        }
        reaches = [asdict(reach) for reach in self._call_all()]
        pairs_of_rounds = self._step(_REACH, reaches, self._tell_rounds)
        for number, pairs in enumerate(pairs_of_rounds):
            rates = self._stream(pairs)
            self._step(f"{_RATES} {number}", rates, self._note_rates)
        pairs_again = self._step("again", [], lambda _values: self._suspects())
        for number, pair in enumerate(pairs_again * _AGAIN_TIMES):
            rates = self._stream([pair])
            self._step(f"{_RATES} again {number}", rates, self._note_rates)

    def _step(self, what: str, mine: object, reply: Any) -> Any:
        return self._gathering.step(what, mine, self._seconds, reply)

    def _tell_hosts(self, values: Mapping[int, Any]) -> dict[str, Any]:
        facts = self._facts(values)
        numbers: dict[object, int] = {}
        nodes = {r: numbers.setdefault(f.identity, len(numbers)) for r, f in sorted(facts.items())}
        return {
            "nodes": nodes,
            "one_host": len({f.identity.loopback for f in facts.values()}) == 1,
            "token": secrets.token_hex(TOKEN_BYTES),
            "nonce": secrets.token_hex(32),
        }

    def _facts(self, values: Mapping[int, Any]) -> dict[int, Facts]:
        found = {}
        for rank, value in values.items():
            with contextlib.suppress(ValueError):
                found[rank] = unpack(Facts, value)
        return found

    def _leaders(self) -> dict[int, int]:
        """Return the lowest rank of each node, those of ranks that have come."""
        leaders: dict[int, int] = {}
        for rank in sorted(self._node_of):
            leaders.setdefault(self._node_of[rank], rank)
        return leaders

    def _call_all(self) -> list[Reach]:
        """Call the other hosts, each at every address that a rank of it listens on."""
        mine = self._node_of[self._rank]
        if self._leaders()[mine] != self._rank:
            return []
        chosen: dict[tuple[int, str], Peer] = {}
        for rank, peer in sorted(self._peers.items()):
            if self._node_of[rank] != mine:
                chosen.setdefault((self._node_of[rank], peer.address), peer)
        # Each host begins with the next one, so that not all call the same host at once.
        order = sorted(chosen, key=lambda key: (key[0] < mine, key))
        callees = [chosen[key] for key in order]
        return reach_all(self._rank, callees, self._token, self._seconds * _CALLS_SHARE)

    def _tell_rounds(self, values: Mapping[int, Any]) -> list[list[tuple[int, int]]]:
        """Return the rounds of streams, as (caller, callee): pairs that can connect."""
        if not self._with_rates:
            return []
        reaches = list(_reaches(values))
        lossy = {frozenset((r.caller, r.callee)) for r in reaches if r.large_error}
        good = {
            (r.caller, r.callee)
            for r in reaches
            if not r.error and frozenset((r.caller, r.callee)) not in lossy
        }
        leaders = [rank for rank in self._leaders().values() if rank in values]
        found = []
        for pairs in rounds(leaders):
            both = ([(a, b), (b, a)] for a, b in pairs)
            chosen = [next((way for way in ways if way in good), None) for ways in both]
            found.append([way for way in chosen if way is not None])
        self._streamed = [way for pairs in found for way in pairs]
        return [pairs for pairs in found if pairs]

    def _stream(self, pairs: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
        callees = [callee for caller, callee in pairs if caller == self._rank]
        seconds = self._seconds * _CALLS_SHARE
        return [
            asdict(rate)
            for callee in callees
            for rate in measure_rate(self._rank, self._peers[callee], self._token, seconds)
        ]

    def _note_rates(self, values: Mapping[int, Any]) -> None:
        """Keep the best of each direction: other work may hold a stream up, nothing speeds it."""
        best = {(rate.source, rate.target): rate for rate in self._rates}
        for value in values.values():
            for entry in value:
                rate = unpack(Rate, entry)
                key = rate.source, rate.target
                if key not in best or rate.rate > best[key].rate:
                    best[key] = rate
        self._rates = list(best.values())

    def _suspects(self) -> list[list[int]]:
        slow = sorted(slow_links(self._rates), key=lambda rate: rate.rate)
        streamed = {frozenset(pair): list(pair) for pair in self._streamed}
        chosen = dict.fromkeys(frozenset((rate.source, rate.target)) for rate in slow)
        return [streamed[pair] for pair in list(chosen)[:_AGAIN_PAIRS]]

    @property
    def examination(self) -> Examination:
        """Return what rank 0 knows so far."""
        gathering = self._gathering
        listening = {}
        for rank, value in gathering.values.get(_LISTEN, {}).items():
            with contextlib.suppress(ValueError):
                listening[rank] = unpack(Listening, value)
        return Examination(
            world_size=self._world_size,
            facts=self._facts(gathering.values.get(_FACTS, {})),
            hosts=gathering.hosts,
            silent=dict(gathering.silent),
            repeated=gathering.repeated(),
            listening=listening,
            reaches=list(_reaches(gathering.values.get(_REACH, {}))),
            rates=list(self._rates),
        )


def _tell_addresses(values: Mapping[int, Any]) -> dict[int, tuple[str, int]]:
    """Return the address and port of each rank; "" for a rank that has none."""
    found = {}
    for rank, value in values.items():
        listening = unpack(Listening, value)
        found[rank] = (listening.address, listening.port)
    return found


def _reaches(values: Mapping[int, Any]) -> Iterator[Reach]:
    for value in values.values():
        for entry in value:
            yield unpack(Reach, entry)


def findings_of(examination: Examination) -> list[Finding]:
    """Return what is wrong, errors first."""
    checks = ARRIVAL_CHECKS
    if examination.facts:
        checks += (*AGREEMENT_CHECKS, *HOST_CHECKS, *NETWORK_CHECKS)
    found = [finding for check in checks for finding in check(examination)]
    return sorted(found, key=lambda finding: finding.severity)
