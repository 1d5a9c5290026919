"""Every finding as a pure function: a healthy job has none, one fault has one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from allreduce.doctor.facts import Facts
from allreduce.doctor.findings import Examination, ranks_text
from allreduce.doctor.listening import Listening
from allreduce.doctor.probes import Rate, Reach
from allreduce.doctor.report import lines
from allreduce.doctor.steps import findings_of

_RANKS, _PER_HOST = 8, 2
_GBIT = 1e9 / 8


def _facts(rank: int, **changes: Any) -> Facts:
    host = rank // _PER_HOST
    variables = {"ALLREDUCE_NODES": "", "ALLREDUCE_CHECKSUM": "1", "ALLREDUCE_CONNECT": ""}
    facts = Facts(
        rank=rank,
        world_size=_RANKS,
        host=f"node{host}",
        boot=f"boot{host}",
        network="net:[1]",
        pid=100 + rank,
        python="3.11.7",
        version="1.0",
        native="n",
        code="c",
        numpy="2.0",
        descriptors_limit=1024,
        descriptors_open=10,
        locked_memory_limit=8 << 20,
        memory=16 << 30,
        cores=list(range(8)),
        host_cores=8,
        numa_nodes=[0],
        name_addresses=[f"10.0.0.{host + 1}"],
        congestion="cubic",
        send_buffer=4 << 20,
        receive_buffer=32 << 20,
        variables=variables,
    )
    more = changes.pop("variables", {})
    return dataclasses.replace(facts, variables={**variables, **more}, **changes)


def _listening(rank: int, **changes: Any) -> Listening:
    address = f"10.0.0.{rank // _PER_HOST + 1}"
    at = Listening(address=address, port=40000 + rank, why="the route", interface="eth0", mtu=1500)
    changes.setdefault("own_address", changes.get("address", address))
    return dataclasses.replace(at, **changes)


_LEADERS = range(0, _RANKS, _PER_HOST)


def _reach(caller: int, callee: int, **changes: Any) -> Reach:
    leaves_by = f"10.0.0.{caller // _PER_HOST + 1}"
    reach = Reach(caller=caller, callee=callee, round_trip=100e-6, leaves_by=leaves_by)
    return dataclasses.replace(reach, **changes)


def _job(
    facts: dict[int, dict[str, Any]] | None = None,
    listening: dict[int, dict[str, Any]] | None = None,
    reaches: dict[tuple[int, int], dict[str, Any]] | None = None,
    rates: dict[tuple[int, int], dict[str, Any]] | None = None,
    **fields: Any,
) -> Examination:
    """A job of 4 hosts with 2 ranks each, with changes."""
    ways = [(a, b) for a in _LEADERS for b in _LEADERS if a != b]
    normal = {"rate": 10 * _GBIT, "round_trip": 100e-6}
    job = Examination(
        world_size=_RANKS,
        facts={r: _facts(r, **(facts or {}).get(r, {})) for r in range(_RANKS)},
        hosts={r: f"node{r // _PER_HOST}" for r in range(_RANKS)},
        listening={r: _listening(r, **(listening or {}).get(r, {})) for r in range(_RANKS)},
        reaches=[_reach(a, b, **(reaches or {}).get((a, b), {})) for a, b in ways],
        rates=[
            Rate(source=a, target=b, **{**normal, **(rates or {}).get((a, b), {})}) for a, b in ways
        ],
    )
    return dataclasses.replace(job, **fields)


def _all(**changes: Any) -> dict[int, dict[str, Any]]:
    return dict.fromkeys(range(_RANKS), changes)


def _to(callee: int, **changes: Any) -> dict[tuple[int, int], dict[str, Any]]:
    return {(caller, callee): changes for caller in _LEADERS if caller != callee}


def _from(caller: int, **changes: Any) -> dict[tuple[int, int], dict[str, Any]]:
    return {(caller, callee): changes for callee in _LEADERS if callee != caller}


def _without(ranks: set[int], step: str) -> Examination:
    job = _job()
    facts = {rank: f for rank, f in job.facts.items() if rank not in ranks}
    return dataclasses.replace(job, facts=facts, silent=dict.fromkeys(ranks, step))


_FAULTS: list[tuple[Callable[[], Examination], str, str]] = [
    (lambda: _without({6, 7}, "arrival"), "missing", "ranks 6, 7 of 8 never came"),
    (
        lambda: _job(silent={5: "reach"}),
        "silent",
        "rank 5 (node2) came, and fell silent in the step 'reach'",
    ),
    (lambda: _job(repeated={3: ["x"]}), "repeated", "2 processes say that they are rank 3, on"),
    (
        lambda: _job({4: {"world_size": 9}}),
        "world-size",
        "rank 4 (node2) has world size 9, rank 0 has 8",
    ),
    (
        lambda: _job({1: {"native": "m"}}),
        "build",
        "rank 1 (node0) runs another hier-allreduce: native sources m (rank 0: n)",
    ),
    (
        lambda: _job({0: {"code": "d"}}),
        "build",
        "rank 0 (node0) runs another hier-allreduce: Python files d (rank 1: c)",
    ),
    (lambda: _job({7: {"python": "3.10.1"}}), "python", "runs Python 3.10.1, ranks 0-6 3.11.7"),
    (lambda: _job({7: {"numpy": "1.9"}}), "numpy", "runs NumPy 1.9, ranks 0-6 2.0"),
    (
        lambda: _job({2: {"variables": {"ALLREDUCE_CHECKSUM": "0"}}}),
        "variable",
        "ALLREDUCE_CHECKSUM is 0 on rank 2 (node1), and 1 on ranks 0, 1, 3-7",
    ),
    (
        lambda: _job({2: {"variables": {"ALLREDUCE_DEAD_AFTER": "9"}}}),
        "variable",
        "ALLREDUCE_DEAD_AFTER is 9 on rank 2 (node1), and not set on",
    ),
    (
        lambda: _job({2: {"problems": {"threads": "can't start new thread"}}}),
        "threads",
        "rank 2 (node1): can't start new thread: raise ulimit -u",
    ),
    (
        lambda: _job(_all(problems={"memfd": "not permitted"})),
        "memfd",
        "ranks 0-7: not permitted: allow memfd_create",
    ),
    (
        lambda: _job({1: {"tuning": "x"}, 0: {"tuning": "x"}}),
        "tuning",
        "ranks 0, 1 (node0) have a tuning file, unlike ranks 2-7",
    ),
    (
        lambda: _job({**_all(tuning="x"), 1: {"tuning": "y"}}),
        "tuning",
        "rank 1 (node0) has another tuning file than ranks 0, 2-7",
    ),
    (
        lambda: _job(_all(secret=True) | {5: {}}, _all(proof="p")),
        "secret-missing",
        "rank 5 (node2) has no secret, but ranks 0-4, 6, 7 have one",
    ),
    (
        lambda: _job(_all(secret=True), {**_all(proof="p"), 5: {"proof": "q"}}),
        "secret-differs",
        "rank 5 (node2) has another secret than ranks 0-4, 6, 7",
    ),
    (
        lambda: _job(_all(variables={"ALLREDUCE_NODES": "9"})),
        "nodes",
        "ALLREDUCE_NODES=9: nodes=9: 8 ranks can be split into 1 to 8 nodes",
    ),
    (
        lambda: _job({2: {"descriptors_limit": 30}}),
        "descriptors",
        "rank 2 (node1) may open 30 files, this job needs 55: ulimit -n 200 there",
    ),
    (
        lambda: _job(
            {**_all(variables={"ALLREDUCE_CONNECT": "needed"})}
            | {
                2: {"descriptors_limit": 50, "variables": {"ALLREDUCE_CONNECT": "needed"}},
            }
        ),
        "descriptors-later",
        "rank 2 (node1) may open 50 files, this job needs 55 once the rank has sent to all",
    ),
    (
        lambda: _job({3: {"locked_memory_limit": 65536}}),
        "locked-memory",
        "rank 3 (node1) may lock 64 KiB of memory, rank 0 8 MiB",
    ),
    (
        lambda: _job({r: {"fast_network_cards": True} for r in (4,)}),
        "locked-memory",
        "rank 4 (node2) may lock 8 MiB of memory: ulimit -l unlimited",
    ),
    (
        lambda: _job({4: {"memory": 1 << 20}}),
        "memory",
        "ranks 4, 5 (node2) may need 5.012 MiB of shared memory, and 1 MiB are free on node2",
    ),
    (
        lambda: _job({5: {"user": 1000}}),
        "users",
        "rank 5 (node2) runs as user 1000, other ranks of that host as user 0",
    ),
    (
        lambda: _job({4: {"cores": [3]}, 5: {"cores": [3]}}),
        "pinned",
        "ranks 4, 5 (node2) are all pinned to core 3 of the 8 cores there",
    ),
    (
        lambda: _job({4: {"quota": 1.5}, 5: {"quota": 1.5}}),
        "cpu-quota",
        "ranks 4, 5 (node2) together may use 1.5 cores' worth of time, though they see 8 cores",
    ),
    (
        lambda: _job({4: {"cores": [3, 4], "numa_nodes": [0, 1]}}),
        "numa",
        "rank 4 (node2) is pinned to cores of NUMA nodes 0, 1",
    ),
    (
        lambda: _job({5: {"network": "net:[2]"}}, {5: {"address": "10.0.0.33"}}),
        "containers",
        "rank 4 and rank 5 are on one machine, in network namespaces of their own",
    ),
    (
        lambda: _job({4: {"host": "node3"}, 5: {"host": "node3"}}),
        "host-name",
        "ranks 4-7 are on 2 machines that all have the name node3",
    ),
    (
        lambda: _job({r: {"name_addresses": ["127.0.1.1"]} for r in (4, 5)}),
        "loopback-name",
        "on the host of ranks 4, 5 the name node2 means 127.0.1.1",
    ),
    (
        lambda: _job(reaches={(0, 4): {"clock_offset": -3.0}, (4, 0): {"clock_offset": 3.0}}),
        "clock",
        "the clock of rank 4 (node2) is 3.0 s behind that of rank 0",
    ),
    (
        lambda: _job({r: {"congestion": "bbr"} for r in (4, 5)}),
        "congestion",
        "TCP's congestion control is bbr on ranks 4, 5 (node2), cubic elsewhere",
    ),
    (
        lambda: _job(listening={5: {"error": "no such interface", "address": ""}}),
        "address",
        "rank 5 (node2) has no address to listen on: no such interface",
    ),
    (
        lambda: _job(
            listening=_all(address="172.17.0.1", interface="docker0"),
            reaches=_to(4, error="connection refused"),
        ),
        "same-address",
        "ranks 0-7 are on several hosts, and all listen on 172.17.0.1 (docker0)",
    ),
    (
        lambda: _job(reaches=_to(4, error="no answer")),
        "unreachable",
        "rank 4 (node2) listens on eth0 10.0.0.3 port 40004 (the route), which no other host "
        "can reach (no answer)",
    ),
    (
        lambda: _job(reaches={(0, 4): {"error": "no answer"}}),
        "unreachable",
        "port 40004 (the route), which rank 0 cannot reach (no answer)",
    ),
    (
        lambda: _job(reaches=_from(4, error="no answer")),
        "unreachable",
        "rank 4 (node2) can connect to no other host (no answer)",
    ),
    (
        lambda: _job(reaches=_to(4, large_error="no answer")),
        "large-packets",
        "from ranks 0, 2, 6 to rank 4 (node2) small packets pass and large ones are lost (MTU: "
        "1500 on rank 0 (node0), 1500 on rank 2 (node1), 1500 on rank 4 (node2))",
    ),
    (
        lambda: _job(listening={r: {"mtu": 9000} for r in (4, 5)}),
        "mtu",
        "eth0 of ranks 4, 5 (node2) has MTU 9000, other ranks have 1500",
    ),
    (
        lambda: _job(reaches=_from(4, leaves_by="10.9.0.3")),
        "route",
        "rank 4 (node2) listens on eth0 10.0.0.3, but its packets to ranks 0, 2, 6 leave by "
        "10.9.0.3",
    ),
    (
        lambda: _job(rates={(2, 4): {"rate": _GBIT}}),
        "slow-link",
        "the link from rank 2 (node1) to rank 4 (node2) is slow: 1 Gbit/s, usual are 10 Gbit/s",
    ),
    (
        lambda: _job(rates=_from(4, rate=_GBIT) | _to(4, rate=_GBIT)),
        "slow-link",
        "links from and to rank 4 (node2) are slow: 1 Gbit/s, usual are 10 Gbit/s",
    ),
    (
        lambda: _job(reaches=_from(4, round_trip=0.03) | _to(4, round_trip=0.03)),
        "far-host",
        "rank 4 (node2) is far from all other hosts: the shortest round trip takes 30 ms, usual "
        "are 100 us (median of hosts)",
    ),
    (
        lambda: _job(rates={(2, 4): {"rate": 0.0}}),
        "stream",
        "a stream from rank 2 (node1) to rank 4 (node2) broke",
    ),
    (
        lambda: _job({4: {"send_buffer": 128 << 10}}),
        "send-buffer",
        "the send buffer of rank 4 (node2) (128 KiB) limits a stream to 10 Gbit/s",
    ),
    (
        lambda: _job({4: {"receive_buffer": 128 << 10}}),
        "receive-buffer",
        "the receive buffer of rank 4 (node2) (128 KiB) limits a stream to 10 Gbit/s",
    ),
]


def test_a_healthy_job_has_no_findings() -> None:
    assert [str(finding) for finding in findings_of(_job())] == []
    assert list(lines(_job(), []))[-1] == "nothing wrong was found"


@pytest.mark.parametrize(("plant", "kind", "text"), _FAULTS)
def test_a_fault_is_found_alone(plant: Callable[[], Examination], kind: str, text: str) -> None:
    job = plant()
    findings = findings_of(job)
    assert [finding.kind for finding in findings] == [kind], list(map(str, findings))
    assert text in str(findings[0])
    assert list(lines(job, findings))[-1] == str(findings[0])


def test_many_ranks_and_hosts_are_summarised() -> None:
    count = 512
    one = _facts(0)
    facts = {
        rank: dataclasses.replace(one, rank=rank, world_size=count, host=f"n{rank // 8}")
        for rank in range(count)
    }
    text = list(lines(Examination(world_size=count, facts=facts), []))
    assert len(text) < 50
    assert any("0-7 " in line and "n0 " in line for line in text)
    assert any("24 more rows; --json has all" in line for line in text)


def test_one_host_alone_has_no_findings() -> None:
    job = Examination(
        world_size=1,
        facts={0: _facts(0, world_size=1, name_addresses=["127.0.1.1"])},
        listening={0: _listening(0, address="127.0.0.1")},
    )
    assert findings_of(job) == []


def test_nobody_came() -> None:
    findings = findings_of(Examination(world_size=2, facts={}, silent={1: "arrival"}))
    assert [finding.kind for finding in findings] == ["missing"]


def test_ranks_in_words() -> None:
    assert ranks_text([3]) == "rank 3"
    assert ranks_text([0, 1, 2, 5, 7, 8]) == "ranks 0-2, 5, 7, 8"
    assert ranks_text(range(0, 40, 2)) == "ranks 0, 2, 4, 6, 8, 10, 12, 14 and 12 more"


def test_the_page_names_every_kind_of_fault() -> None:
    root = Path(__file__).resolve().parents[2]
    page = (root / "docs/doctor.md").read_text()
    code = "".join(file.read_text() for file in (root / "allreduce/doctor").glob("*.py"))
    kinds = set(re.findall(r'kind="([a-z-]+)"', code)) | {kind for _, kind, _ in _FAULTS}
    assert len(kinds) > 30
    assert {kind for kind in kinds if f"`{kind}`" not in page} == set()
