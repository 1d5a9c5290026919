"""Measures collectives on a cluster of yours: `python -m allreduce.bench` on each rank of a job.

Under torchrun, srun or mpirun, with RANK and its like set, or alone with `--ranks 4`. Options and
columns are those of nccl-tests where it has them; see `--help`.

The time of a call is the maximum over the ranks: after a barrier, each rank reads its own clock
before and after the call, as OSU's micro-benchmarks do. nccl-tests makes its calls back to back
instead; so one call of a broadcast, a reduce or a gather would overlap with the next, and the time
would be that of none. The price: where a machine has more ranks than cores, the time holds
the wait until all ranks have left the barrier and got a core. Shown are the median and the 99th
percentile of the calls; the bandwidths belong to the median.

A call is the core's, on buffers that are there, as torch's calls make it. (`comm.allreduce` adds
some 4 us of Python; `comm.allgather` and the like also make the array that they return.) Buffers
hold zeros while calls are timed; the results of other calls, of values that are exact in every
dtype, are checked element by element.

CPU s/GB is what all ranks spent in the timed calls, waiting and helper threads included, by GB of
size. The last columns are the bytes of one call that all ranks together moved through shared memory
and between nodes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from zlib import crc32

import numpy as np

from allreduce.bench.options import Options, parse
from allreduce.bench.rows import HEAD, measure
from allreduce.commands.job_description import Job, describe
from allreduce.commands.run_on_ranks import InitArguments, run_command
from allreduce.communicator.communicator import Communicator
from allreduce.communicator.init import init
from allreduce.errors import UsageError
from allreduce.rendezvous.launcher_environment import EMULATED

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line on one rank; return its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return run_command("allreduce.bench", arguments, parse, _member)


def _member(options: Options, place: InitArguments) -> int:
    """Be a rank of the job."""
    with init(**place, timeout=options.timeout, nodes=options.nodes, local=options.local) as comm:
        wrong = _refusal(comm, options)
        if wrong is None:
            return _report(comm, options)
    # Not raised inside: leaving by an error aborts the others, who are about to say the same.
    raise UsageError(wrong)


def _refusal(comm: Communicator, options: Options) -> str | None:
    """Say why these ranks cannot do that; the same on all ranks."""
    mine = np.array([crc32(repr(options).encode())], np.int64)
    if len(set(comm.allgather(mine).tolist())) > 1:
        return "ranks were started with different options; give all the same"
    if options.root >= comm.world_size:
        return f"-r {options.root}: there are ranks 0 to {comm.world_size - 1}"
    if options.collective == "sendrecv" and comm.world_size == 1:
        return "sendrecv takes two ranks or more; start it with a launcher, or with --ranks 2"
    problem = ""
    if options.json is not None and comm.rank == 0:
        try:
            options.json.open("a").close()  # before the minutes of measuring
        except OSError as error:
            problem = f"--json {options.json}: {error.strerror}; name another file"
    failed = comm.broadcast(np.array([bool(problem)]), root=0)
    return (problem or "--json: see rank 0") if failed[0] else None


def _report(comm: Communicator, options: Options) -> int:
    """Measure, print and write it all; 1 if anything was wrong."""
    job, rows = describe(comm), []
    speaks = comm.rank == 0
    if speaks:
        print(*(f"# {line}" for line in _head(options, job)), sep="\n")
        print(*(f"#{line[1:]}" for line in HEAD), sep="\n", flush=True)
    for row in measure(comm, options):
        rows.append(row)
        if speaks:
            print(row, flush=True)
    wrong = sum(row.wrong or 0 for row in rows)
    if not speaks:
        return int(wrong > 0)
    checked = f"{wrong} {'FAILED' if wrong else 'OK'}" if options.check else "not checked"
    print(f"# Out of bounds values : {checked}")
    mean = sum(row.busbw_gbps for row in rows) / len(rows)
    print(f"# Avg bus bandwidth    : {mean:g}")
    if options.json is not None:
        emulated = os.environ.get(EMULATED)
        whole = {
            "label": "EMULATED" if emulated else "MEASURED",
            "emulated": emulated,
            "options": {**asdict(options), "json": str(options.json)},
            "job": asdict(job),
            "rows": [asdict(row) for row in rows],
            "wrong": wrong if options.check else None,
        }
        options.json.write_text(json.dumps(whole, indent=1) + "\n")
    return int(wrong > 0)


def _head(options: Options, job: Job) -> list[str]:
    emulated = os.environ.get(EMULATED)
    label = f"EMULATED: {emulated}" if emulated else "MEASURED on this job's ranks"
    lines = [f"allreduce.bench: {options.collective}, {label}", *job.lines()]
    lines.append(
        "time: of a call after a barrier, the maximum over the ranks by their own clocks; "
        f"{options.calls_in_words}, after {options.warmup_iters}"
    )
    return lines
