"""Section: several processes on the one GPU: hier in three layouts, Gloo, NCCL where it agrees."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from benchmarks.gpu.place import CPU, CPU_RUNTIME
from benchmarks.gpu.rows import Rows
from benchmarks.gpu.worlds import WorldFailed, run_world

_SHARED = {"NCCL_MULTI_RANK_GPU_ENABLE": "1"}  # NCCL 2.30 and newer
_APART = {"NCCL_HOSTID": "rank{rank}", "NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1"}
# Ranks, and the variables that they have.
_LAYOUTS = {
    "2 nodes x 1": (2, {"ALLREDUCE_NODES": "2"}),
    "1 node x 2": (2, {"ALLREDUCE_NODES": "1"}),
    "2 nodes x 2": (4, {"ALLREDUCE_NODES": "2"}),
    "1 node x 2, by the host": (2, {"ALLREDUCE_NODES": "1", "ALLREDUCE_DEVICE_LOCAL": "host"}),
    "1 node x 2, by NCCL": (
        2,
        {"ALLREDUCE_NODES": "1", "ALLREDUCE_DEVICE_LOCAL": "nccl", **_APART},
    ),
}
_NEAR = 1e-6  # of two ways to take five steps, in f32
_SECONDS, _PEER_SECONDS = 40.0, 25.0  # for a world; for one of a peer, which may hang for ever


def run(rows: Rows) -> None:
    """One world after the other."""
    counts = [1, 1000, 100_003] if rows.small else [1, 1024, 262_144, 6_553_600, 25_557_032]
    spec = {"counts": counts, "calls": 3 if rows.small else 5}
    on = rows.place.on(CPU_RUNTIME)
    for words, (size, env) in list(_LAYOUTS.items())[: 3 if rows.quick else None]:
        found = _world(rows, f"hier, {words}", size, "core", spec, env)
        if found is None:
            continue
        stage = found[0][-1]["stage"]
        if "NCCL" in words and stage != "nccl":
            rows.absent(f"hier, {words}", stage)
            continue
        rows.fact(f"hier, {words}: local stage", stage)
        _report(rows, f"hier, {words}", found, on)
        alone = all(one["as_alone"] for rank in found for one in rank)
        if stage == "nccl":  # which may add in an order of its own
            rows.fact(f"hier, {words}: the bits of a single process", str(alone))
        else:
            rows.check(f"hier, {words}: the bits of a single process", alone, on=on)
    for size in (2,) if rows.quick else (2, 4):
        _sharded(rows, size)
    if rows.quick:
        return
    _cupy(rows, spec)
    on = rows.place.on(CPU)
    for name in ("hier", "gloo"):
        given = {**spec, "backend": name}
        words = f"torch.distributed, {name}, 2 ranks"
        found = _world(rows, words, 2, "backend", given, {"ALLREDUCE_NODES": "2"})
        if found is not None:
            _report(rows, words, found, on, peer=name == "gloo")
    _nccl(rows, spec)


def _sharded(rows: Rows, size: int) -> None:
    """The kernels of the ranks wait for each other, and the GPU is one process's at a time."""
    on = rows.place.on(CPU_RUNTIME)
    name = f"ShardedSGD, 1 node x {size}: one kernel as three calls"
    found = _world(rows, name, size, "sharded", {}, {"ALLREDUCE_NODES": "1"})
    if found is None:
        return
    if found[0]["why_not"]:
        rows.absent(name, found[0]["why_not"])
        return
    error = max(one["error"] for one in found)
    same = len({one["digest"] for one in found}) == 1
    rows.check(name, error < _NEAR and same, on=on, note=f"relative difference {error:.2g}")


def _cupy(rows: Rows, spec: Mapping[str, Any]) -> None:
    name = "hier, 1 node x 2, arrays of CuPy"
    if rows.place.gpu is None or find_spec("cupy") is None:
        rows.absent(name, "there is no GPU" if rows.place.gpu is None else "CuPy is not installed")
        return
    given = {**spec, "library": "cupy"}
    found = _world(rows, name, 2, "core", given, {"ALLREDUCE_NODES": "1"})
    if found is not None:
        _report(rows, name, found, rows.place.on(""))


def _world(
    rows: Rows,
    name: str,
    size: int,
    body: str,
    spec: Mapping[str, Any],
    env: Mapping[str, str],
) -> list[Any] | None:
    peer = spec.get("backend") in ("gloo", "nccl")
    seconds = _PEER_SECONDS if peer else _SECONDS
    try:
        return run_world(rows.place, size, body, spec, env, seconds=seconds)
    except WorldFailed as error:
        if peer:  # its failure is not ours
            rows.absent(name, str(error))
        else:
            rows.check(name, False, on=rows.place.on(CPU_RUNTIME), note=str(error))
        return None


def _report(
    rows: Rows, name: str, found: list[list[dict[str, Any]]], on: str, *, peer: bool = False
) -> None:
    """Verdict and times of a world; `found` is by rank, then by size."""
    problems = []
    for sizes in zip(*found, strict=True):
        if not all(one["right"] for one in sizes):
            problems.append(f"{sizes[0]['count']} elements: wrong")
        if len({one["digest"] for one in sizes}) > 1:
            problems.append(f"{sizes[0]['count']} elements: ranks differ")
    if peer and problems:
        rows.absent(name, "; ".join(problems))
    else:
        rows.check(f"{name}: results", not problems, on=on, note="; ".join(problems))
    for sizes in zip(*found, strict=True):
        seconds = max(one["seconds"] for one in sizes)
        rows.add(f"{name}, {4 * sizes[0]['count']} B", seconds * 1e6, "us", on=on)


def _nccl(rows: Rows, spec: Mapping[str, Any]) -> None:
    """By sockets, each rank a host of its own to NCCL; by the GPU's memory, where NCCL can."""
    if rows.place.gpu is None:
        rows.absent("torch.distributed, nccl", "there is no GPU")
        return
    import torch

    version = torch.cuda.nccl.version()
    for words, env, oldest in (("as 2 hosts", _APART, (2,)), ("shared", _SHARED, (2, 30))):
        name = f"torch.distributed, nccl, {words}"
        if version < oldest:
            rows.absent(name, f"torch's NCCL is {version}, older than {oldest}")
            continue
        found = _world(rows, name, 2, "backend", {**spec, "backend": "nccl"}, env)
        if found is not None:
            _report(rows, name, found, rows.place.on(""), peer=True)
