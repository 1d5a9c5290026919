"""What rank 0 prints: a table of the ranks, the links in short, and a line for each fault."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from allreduce.doctor.facts import NO_LIMIT
from allreduce.doctor.findings import Examination, Finding, ranks_text
from allreduce.doctor.network_findings import bandwidth_text, time_text

__all__ = ["as_json", "lines"]

_HEAD = ("rank", "host", "node", "address", "interface", "MTU", "cores", "memory", "versions")
_ROWS_SHOWN = 40
_MATRIX_HOSTS = 6  # of more hosts only a summary is shown
NOTHING_WRONG = "nothing wrong was found"


def lines(e: Examination, findings: Sequence[Finding]) -> Iterator[str]:
    """Yield the report."""
    yield f"# allreduce.doctor: {_label(e)}, {len(e.facts)} of {e.world_size} ranks"
    yield from (f"# {line}" for line in _table(e))
    yield from (f"# {line}" for line in _links(e))
    if not findings:
        yield NOTHING_WRONG
    yield from map(str, findings)


def _label(e: Examination) -> str:
    emulated = next((facts.emulated for facts in e.facts.values() if facts.emulated), "")
    return f"EMULATED: {emulated}" if emulated else "MEASURED on this job's hosts"


def _table(e: Examination) -> Iterator[str]:
    """Yield a row for each run of ranks that differ in nothing but their number."""
    found: dict[tuple[str, ...], list[int]] = {}
    for rank in sorted(e.facts):
        found.setdefault(_row(e, rank), []).append(rank)
    rows = [_HEAD] + [
        (ranks_text(ranks).partition(" ")[2], *row) for row, ranks in list(found.items())
    ]
    left = len(rows) - 1 - _ROWS_SHOWN
    rows = rows[: _ROWS_SHOWN + 1]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    for row in rows:
        yield "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
    if left > 0:
        yield f"and {left} more rows; --json has all"


def _row(e: Examination, rank: int) -> tuple[str, ...]:
    facts, at = e.facts[rank], e.listening.get(rank)
    cores = ranks_text(facts.cores).partition(" ")[2].replace(" ", "")
    memory = "?" if facts.memory >= NO_LIMIT else f"{facts.memory >> 30} GiB"
    return (
        facts.host,
        str(e.node_of_rank[rank]),
        (at.address if at else "") or "-",
        (at.interface if at else "") or "-",
        str(at.mtu or "-") if at else "-",
        f"{cores} of {facts.host_cores}",
        memory,
        f"{facts.version}, Python {facts.python}, NumPy {facts.numpy}, Linux {facts.kernel}",
    )


def _links(e: Examination) -> Iterator[str]:
    good = [reach for reach in e.reaches if not reach.error]
    if not e.reaches:
        yield "one host: no links between hosts" if e.facts else "no rank was heard"
        return
    yield f"connections between hosts: {len(good)} of {len(e.reaches)} tried"
    if good:
        trips = sorted(reach.round_trip for reach in good)
        yield f"round trip: {_spread([time_text(t) for t in _three(trips)])}"
    rates = sorted(rate.rate for rate in e.rates if rate.rate > 0)
    if rates:
        yield f"one TCP stream: {_spread([bandwidth_text(r) for r in _three(rates)])}"
    if len({rate.source for rate in e.rates}) <= _MATRIX_HOSTS:
        for rate in sorted(e.rates, key=lambda rate: (rate.source, rate.target)):
            yield f"  {e.at(rate.source)} to {e.at(rate.target)}: {bandwidth_text(rate.rate)}"


def _three(values: Sequence[float]) -> list[float]:
    return [values[0], statistics.median(values), values[-1]]


def _spread(words: Sequence[str]) -> str:
    least, median, most = words
    return f"{median} (median), {least} to {most}"


def as_json(e: Examination, findings: Sequence[Finding], code: int) -> str:
    """Return the whole examination for a program."""
    whole = {
        "world_size": e.world_size,
        "exit_code": code,
        "findings": [asdict(finding) for finding in findings],
        "silent": e.silent,
        "node_of_rank": e.node_of_rank,
        "facts": {rank: asdict(facts) for rank, facts in e.facts.items()},
        "listening": {
            rank: {k: v for k, v in asdict(at).items() if k != "proof"}
            for rank, at in e.listening.items()
        },
        "reaches": [asdict(reach) for reach in e.reaches],
        "rates": [asdict(rate) for rate in e.rates],
    }
    return json.dumps(whole, indent=1) + "\n"
