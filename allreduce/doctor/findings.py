"""What is wrong, as one sentence and one remedy for each fault: pure functions of all facts.

Each check is a small function from an Examination to its findings. `CHECKS` is the table of all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeVar

from allreduce.doctor.facts import Facts
from allreduce.doctor.listening import Listening
from allreduce.doctor.probes import Rate, Reach
from allreduce.errors import UsageError
from allreduce.rendezvous.node_layout import layout, nodes_option

__all__ = ["Check", "Examination", "Finding", "Severity", "differing", "ranks_text", "verb"]

Severity = Literal["error", "warning"]
Value = TypeVar("Value", bound=Hashable)
_RANKS_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A fault. An error keeps the job from starting; a warning makes it slow or surprising."""

    severity: Severity
    kind: str
    ranks: tuple[int, ...]
    text: str
    remedy: str

    def __str__(self) -> str:
        """Return the line for the reader."""
        return f"{self.severity}: {self.text}: {self.remedy} [{self.kind}]"


@dataclass(frozen=True, kw_only=True)
class Examination:
    """All that rank 0 has learned. Only ranks that came are in the tables."""

    world_size: int
    facts: Mapping[int, Facts]
    hosts: Mapping[int, str] = field(default_factory=dict)  # of ranks that came, be it shortly
    silent: Mapping[int, str] = field(default_factory=dict)  # in which step a rank did not come
    repeated: Mapping[int, Sequence[str]] = field(default_factory=dict)  # further hosts of a rank
    listening: Mapping[int, Listening] = field(default_factory=dict)
    reaches: Sequence[Reach] = ()
    rates: Sequence[Rate] = ()

    @cached_property
    def node_of_rank(self) -> list[int]:
        """Return the node of each rank, as the job would have it; as hosts are, where it cannot."""
        identities = [
            self.facts[rank].identity if rank in self.facts else None
            for rank in range(self.world_size)
        ]
        known = [identity for identity in identities if identity is not None]
        variables = self.facts[min(self.facts)].variables if self.facts else {}
        if len(known) == self.world_size:
            try:
                return layout(known, nodes_option(None, variables))
            except UsageError:
                return layout(known, None)
        numbers: dict[object, int] = {}
        return [numbers.setdefault(identity, len(numbers)) for identity in identities]

    @cached_property
    def host_of(self) -> dict[int, Hashable]:
        """Return what ranks have in common that reach each other by loopback."""
        return {rank: facts.identity.loopback for rank, facts in self.facts.items()}

    @cached_property
    def several_hosts(self) -> bool:
        """Return whether ranks are on more than one host."""
        return len(set(self.host_of.values())) > 1

    def at(self, rank: int) -> str:
        """Return "rank 3 (node7)"."""
        host = self.facts[rank].host if rank in self.facts else self.hosts.get(rank, "")
        return f"rank {rank} ({host})" if host else f"rank {rank}"

    def on(self, ranks: Iterable[int]) -> str:
        """Return the ranks in words, with their host where it is one."""
        some = sorted(ranks)
        hosts = {self.facts[rank].host for rank in some if rank in self.facts}
        return f"{ranks_text(some)} ({hosts.pop()})" if len(hosts) == 1 else ranks_text(some)


Check = Callable[[Examination], Iterator[Finding]]


def differing(values: Mapping[int, Value]) -> tuple[Value, dict[Value, list[int]]]:
    """Return the value of most ranks, and those who have another one, by value.

    Of two values that are equally frequent, that of the lowest rank counts.
    """
    counts = Counter(values.values())
    first = {value: min(r for r in values if values[r] == value) for value in counts}
    common = max(counts, key=lambda value: (counts[value], -first[value]))
    others: dict[Value, list[int]] = {}
    for rank, value in sorted(values.items()):
        if value != common:
            others.setdefault(value, []).append(rank)
    return common, others


def ranks_text(ranks: Iterable[int], shown: int = _RANKS_SHOWN) -> str:
    """Return "rank 3", "ranks 0-3, 7"; long lists are cut."""
    some = sorted(ranks)
    runs: list[list[int]] = []
    for rank in some:
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    words = [f"{a}" if a == b else f"{a}, {b}" if b == a + 1 else f"{a}-{b}" for a, b in runs]
    left = sum(b - a + 1 for a, b in runs[shown:])
    more = f" and {left} more" if left else ""
    return f"rank{'s' if len(some) != 1 else ''} {', '.join(words[:shown])}{more}"


def verb(ranks: Sequence[int], singular: str, plural: str) -> str:
    """Return the verb for so many ranks."""
    return singular if len(ranks) == 1 else plural
