"""Findings: who came, and whether all ranks run one build with the same options and secret."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from allreduce.doctor.facts import AGREED, AGREED_LOOSELY
from allreduce.doctor.findings import Check, Examination, Finding, differing, ranks_text, verb
from allreduce.doctor.gathering import ARRIVAL
from allreduce.errors import UsageError
from allreduce.rendezvous.node_layout import layout, nodes_option

__all__ = ["AGREEMENT_CHECKS", "ARRIVAL_CHECKS"]

_SECRET_REMEDY = "give all ranks one ALLREDUCE_SECRET_FILE, or none (docs/networks.md)"


def missing(e: Examination) -> Iterator[Finding]:
    """Ranks that never came."""
    ranks = sorted(rank for rank, step in e.silent.items() if step == ARRIVAL)
    if ranks:
        yield Finding(
            severity="error",
            kind="missing",
            ranks=tuple(ranks),
            text=f"{ranks_text(ranks)} of {e.world_size} never came",
            remedy="read what those processes printed, and see whether they were started with the "
            "same MASTER_ADDR, MASTER_PORT and world size, and whether a firewall is between",
        )


def fell_silent(e: Examination) -> Iterator[Finding]:
    """Ranks that came, and then did not answer any more."""
    for rank, step in sorted(e.silent.items()):
        if step != ARRIVAL:
            yield Finding(
                severity="error",
                kind="silent",
                ranks=(rank,),
                text=f"{e.at(rank)} came, and fell silent in the step {step!r}",
                remedy="it has probably died, or is stopped: read what it printed",
            )


def repeated(e: Examination) -> Iterator[Finding]:
    """Two processes with one rank."""
    for rank, others in sorted(e.repeated.items()):
        yield Finding(
            severity="error",
            kind="repeated",
            ranks=(rank,),
            text=f"{len(others) + 1} processes say that they are rank {rank}, on "
            f"{', '.join([e.hosts.get(rank, '?'), *others])}",
            remedy="give each process its own RANK",
        )


def world_size(e: Examination) -> Iterator[Finding]:
    """Ranks that count another number of ranks."""
    for rank, facts in sorted(e.facts.items()):
        if facts.world_size != e.world_size:
            yield Finding(
                severity="error",
                kind="world-size",
                ranks=(rank,),
                text=f"{e.at(rank)} has world size {facts.world_size}, rank 0 has {e.world_size}",
                remedy="give all ranks the same WORLD_SIZE",
            )


def builds(e: Examination) -> Iterator[Finding]:
    """Ranks with another hier-allreduce."""
    values = {r: (f.version, f.native, f.code) for r, f in e.facts.items()}
    common, others = differing(values)
    first = next(rank for rank in sorted(values) if values[rank] == common)
    for (version, native, code), ranks in others.items():
        what = [
            f"{name} {one} (rank {first}: {other})"
            for name, one, other in (
                ("version", version, common[0]),
                ("native sources", native, common[1]),
                ("Python files", code, common[2]),
            )
            if one != other
        ]
        yield Finding(
            severity="error",
            kind="build",
            ranks=tuple(ranks),
            text=f"{e.on(ranks)} {verb(ranks, 'runs', 'run')} another hier-allreduce: "
            f"{', '.join(what)}",
            remedy="install one build everywhere",
        )


def interpreters(e: Examination) -> Iterator[Finding]:
    """Ranks with another Python or NumPy."""
    for name in ("python", "numpy"):
        values = {r: getattr(f, name) for r, f in e.facts.items()}
        common, others = differing(values)
        for value, ranks in others.items():
            title = {"python": "Python", "numpy": "NumPy"}[name]
            yield Finding(
                severity="warning",
                kind=name,
                ranks=tuple(ranks),
                text=f"{e.on(ranks)} {verb(ranks, 'runs', 'run')} {title} {value}, "
                f"{_with(values, common)} {common}",
                remedy="use one environment everywhere",
            )


def variables(e: Examination) -> Iterator[Finding]:
    """Variables that all ranks give alike, and some ranks do not."""
    for name in (*AGREED, *AGREED_LOOSELY):
        values = {
            r: f.variables.get(name, "") for r, f in e.facts.items() if name not in f.problems
        }
        if not values:
            continue
        common, others = differing(values)
        for value, ranks in others.items():
            yield Finding(
                severity="error" if name in AGREED else "warning",
                kind="variable",
                ranks=tuple(ranks),
                text=f"{name} is {value or 'not set'} on {e.on(ranks)}, "
                f"and {common or 'not set'} on {_with(values, common)}",
                remedy="give all ranks the same (does the launcher pass it on?)",
            )


def problems(e: Examination) -> Iterator[Finding]:
    """What a rank itself found impossible."""
    found: dict[tuple[str, str], list[int]] = {}
    for rank, facts in sorted(e.facts.items()):
        for name, text in facts.problems.items():
            found.setdefault((name, text), []).append(rank)
    for (name, text), ranks in found.items():
        yield Finding(
            severity="error",
            kind=name.replace(" ", "-") if name.islower() else "variable",
            ranks=tuple(ranks),
            text=f"{e.on(ranks)}: {text}",
            remedy=_REMEDIES.get(name, "change or unset the variable there"),
        )


_REMEDIES = {
    "proc": "mount /proc there",
    "memfd": "allow memfd_create there (seccomp profile, ulimit -n)",
    "unix socket": "allow Unix sockets there",
    "threads": "raise ulimit -u, or the container's limit of pids",
    "secret": _SECRET_REMEDY,
    "ALLREDUCE_TUNING": "name a file of `python -m allreduce.tune`",
}


def tuning(e: Examination) -> Iterator[Finding]:
    """Ranks with another tuning file."""
    values = {r: f.tuning for r, f in e.facts.items() if "ALLREDUCE_TUNING" not in f.problems}
    if not values:
        return
    common, others = differing(values)
    for value, ranks in others.items():
        what = "another tuning file than" if value and common else "a tuning file, unlike"
        what = what if value else "no tuning file, unlike"
        yield Finding(
            severity="error",
            kind="tuning",
            ranks=tuple(ranks),
            text=f"{e.on(ranks)} {verb(ranks, 'has', 'have')} {what} {_with(values, common)}",
            remedy="give all ranks the same file by ALLREDUCE_TUNING",
        )


def secret(e: Examination) -> Iterator[Finding]:
    """Ranks without the secret, or with another one."""
    asked = {rank: f for rank, f in e.facts.items() if "secret" not in f.problems}
    having = [rank for rank, facts in asked.items() if facts.secret]
    without = [rank for rank, facts in asked.items() if not facts.secret]
    if having and without:
        yield Finding(
            severity="error",
            kind="secret-missing",
            ranks=tuple(without),
            text=f"{e.on(without)} {verb(without, 'has', 'have')} no secret, but "
            f"{ranks_text(having)} {verb(having, 'has', 'have')} one",
            remedy=_SECRET_REMEDY,
        )
    proofs = {r: e.listening[r].proof for r in having if r in e.listening}
    if not proofs:
        return
    common, others = differing(proofs)
    for ranks in others.values():
        yield Finding(
            severity="error",
            kind="secret-differs",
            ranks=tuple(ranks),
            text=f"{e.on(ranks)} {verb(ranks, 'has', 'have')} another secret than "
            f"{_with(proofs, common)}",
            remedy=_SECRET_REMEDY,
        )


def nodes(e: Examination) -> Iterator[Finding]:
    """ALLREDUCE_NODES that does not fit the ranks."""
    if len(e.facts) < e.world_size or not e.facts:
        return
    first = e.facts[min(e.facts)]
    if "ALLREDUCE_NODES" in first.problems:
        return
    identities = [e.facts[rank].identity for rank in range(e.world_size)]
    try:
        layout(identities, nodes_option(None, first.variables))
    except UsageError as error:
        yield Finding(
            severity="error",
            kind="nodes",
            ranks=tuple(sorted(e.facts)),
            text=f"ALLREDUCE_NODES={first.variables.get('ALLREDUCE_NODES')}: {error}",
            remedy="ranks of one host form a node without it",
        )


def _with(values: Mapping[int, object], value: object) -> str:
    """Return the ranks that have a value."""
    return ranks_text(rank for rank, other in values.items() if other == value)


ARRIVAL_CHECKS: tuple[Check, ...] = (missing, fell_silent, repeated)
AGREEMENT_CHECKS: tuple[Check, ...] = (
    world_size,
    builds,
    interpreters,
    problems,
    variables,
    tuning,
    secret,
    nodes,
)
