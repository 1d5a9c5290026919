"""The rows of a benchmark's table, measured one after the other."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from allreduce import _C
from allreduce.bench.cases import KINDS, Case, nbytes_of
from allreduce.bench.options import Options
from allreduce.communicator.auto_choices import measure_once
from allreduce.communicator.communicator import Communicator
from allreduce.schedules import algorithms

__all__ = ["HEAD", "Row", "measure"]

HEAD = (
    f"{'size':>12} {'count':>12} {'type':>8} {'redop':>5} {'root':>4} {'algorithm':<25} "
    f"{'memory':<9} {'time us':>10} {'p99 us':>10} {'algbw':>7} {'busbw':>7} {'#wrong':>6} "
    f"{'CPU':>9} {'shared':>12} {'network':>12}",
    f"{'B':>12} {'elements':>12} {'':>8} {'':>5} {'':>4} {'':<25} "
    f"{'':<9} {'median':>10} {'':>10} {'GB/s':>7} {'GB/s':>7} {'':>6} "
    f"{'s/GB':>9} {'B/call':>12} {'B/call':>12}",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of the table. GB are 10^9 bytes; root is -1 where there is none."""

    size: int
    count: int
    type: str
    redop: str
    root: int
    algorithm: str
    memory: str  # "private" or "symmetric"
    calls: int
    p50_us: float
    p99_us: float
    min_us: float
    max_us: float
    algbw_gbps: float  # GB/s
    busbw_gbps: float
    wrong: int | None  # elements, of all ranks; None: not checked
    cpu_s_per_gb: float
    shared_memory_bytes: int
    network_bytes: int

    def __str__(self) -> str:
        """Return the line, under `HEAD`."""
        wrong = "N/A" if self.wrong is None else self.wrong
        return (
            f"{self.size:>12} {self.count:>12} {self.type:>8} {self.redop:>5} {self.root:>4} "
            f"{self.algorithm:<25} {self.memory:<9} {self.p50_us:>10.1f} {self.p99_us:>10.1f} "
            f"{self.algbw_gbps:>7.2f} {self.busbw_gbps:>7.2f} {wrong:>6} "
            f"{self.cpu_s_per_gb:>9.2f} {self.shared_memory_bytes:>12} {self.network_bytes:>12}"
        )


def measure(comm: Communicator, options: Options) -> Iterator[Row]:
    """Measure row by row, on every rank; rows are the same on all ranks."""
    chooses = options.collective == "allreduce" and not _runs_no_schedule(comm, options)
    if chooses and "auto" in options.algo:
        measure_once(comm)
    root = options.root if KINDS[options.collective].rooted else -1
    largest = max(
        nbytes_of(options.collective, options.sizes()[-1], dtype, comm.world_size)
        for dtype in options.datatype
    )
    buffers = {"private": np.empty(largest, np.uint8)}
    if options.symmetric:
        buffers["symmetric"] = comm.symmetric_empty(largest, "uint8")
    source = np.empty(largest if KINDS[options.collective].input else 0, np.uint8)
    kinds = product(options.datatype, options.op, options.sizes())
    for dtype, op, nbytes in kinds:
        for algorithm, (memory, buffer) in product(_names(comm, options), buffers.items()):
            case = Case(
                comm,
                options.collective,
                nbytes=nbytes,
                dtype=dtype,
                op=op,
                root=root,
                algorithm=algorithm,
                buffer=buffer,
                input=source,
            )
            yield Row(
                size=case.nbytes,
                count=case.count,
                type=dtype,
                redop=op,
                root=root,
                algorithm=_shown(comm, options, algorithm, case.nbytes),
                memory=memory,
                **_times(comm, case, options),
            )


def _names(comm: Communicator, options: Options) -> list[str]:
    """Return the algorithms to measure, "all" spelled out."""
    if _runs_no_schedule(comm, options):
        return ["auto"]
    names: list[str] = []
    for name in options.algo:
        names += algorithms(options.collective) if name == "all" else [name]
    return list(dict.fromkeys(names))


def _shown(comm: Communicator, options: Options, algorithm: str, nbytes: int) -> str:
    if options.collective == "sendrecv":
        return "-"
    if _runs_no_schedule(comm, options):
        return "shared memory"
    if algorithm != "auto":
        return algorithm
    kind = _C.Collective.__members__[options.collective]
    return f"auto: {comm._group.choose(kind, nbytes)}"


def _runs_no_schedule(comm: Communicator, options: Options) -> bool:
    """Tell whether the ranks of the one node only sum in shared memory."""
    alone = comm.num_nodes == 1 and comm.world_size > 1
    return options.collective == "allreduce" and comm.hierarchical and alone


def _times(comm: Communicator, case: Case, options: Options) -> dict[str, Any]:
    """Check, warm up, count bytes, then time the calls; return what the row says of them."""
    wrong = 0
    for salt in range(options.check):
        case.prepare(salt)
        case.call()
        wrong += case.count_wrong(salt)
    case.clear()
    for _ in range(options.warmup_iters):
        case.call()
    before = comm.traffic()
    case.call()
    after = comm.traffic()
    calls = options.calls(case.nbytes)
    seconds, cpu = _timed(comm, case, calls)
    comm.allreduce(seconds, op="max")
    moved = [after[key] - before[key] for key in ("shared_memory_bytes", "network_bytes")]
    totals = comm.allreduce(np.array([wrong, *moved], np.int64))
    median = float(np.median(seconds))
    algbw = case.nbytes / median / 1e9
    return {
        "calls": calls,
        "p50_us": median * 1e6,
        "p99_us": float(np.sort(seconds)[-(-99 * calls // 100) - 1]) * 1e6,
        "min_us": float(seconds.min()) * 1e6,
        "max_us": float(seconds.max()) * 1e6,
        "algbw_gbps": algbw,
        "busbw_gbps": algbw * case.kind.factor(comm.world_size),
        "wrong": int(totals[0]) if options.check else None,
        "cpu_s_per_gb": float(comm.allreduce(np.array([cpu]))[0]) / calls / case.nbytes * 1e9,
        "shared_memory_bytes": int(totals[1]),
        "network_bytes": int(totals[2]),
    }


def _timed(comm: Communicator, case: Case, calls: int) -> tuple[np.ndarray[Any, Any], float]:
    """Return the seconds of each call on this rank, and its CPU seconds for them all."""
    seconds = np.empty(calls)
    cpu = 0.0
    reading = min(-_cpu_seconds() + _cpu_seconds() for _ in range(20))  # what asking takes
    for i in range(calls):
        comm.barrier()
        cpu_before = _cpu_seconds()
        begin = time.perf_counter()
        case.call()
        seconds[i] = time.perf_counter() - begin
        cpu += _cpu_seconds() - cpu_before - reading
    return seconds, max(0.0, cpu)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
