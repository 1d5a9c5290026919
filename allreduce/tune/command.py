"""Measures a job's ranks thoroughly and writes a tuning file: `python -m allreduce.tune`.

Under torchrun, srun or mpirun it takes the ranks of the job, alone it starts some on this machine
(`--ranks 4`). Algorithms take turns, in bursts of calls; the table shows the median of turns, the
mean over ranks. See `--help`, and docs/tuning.md for the file and how it is used.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from zlib import crc32

import numpy as np

import allreduce
from allreduce.commands.job_description import cpu_name, describe
from allreduce.commands.run_on_ranks import InitArguments, run_command
from allreduce.communicator.communicator import Communicator
from allreduce.communicator.init import init
from allreduce.errors import UsageError
from allreduce.tune.options import TuneOptions, parse
from allreduce.tune.table import table, trial_line
from allreduce.tune.trials import algorithm_times, best_options, tuned_by, with_options
from allreduce.tuning import Tuning
from allreduce.tuning.file import read, text

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line on one rank; return its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return run_command("allreduce.tune", arguments, parse, _member)


def _member(options: TuneOptions, place: InitArguments) -> int:
    """Be a rank of the job."""
    with init(
        **place,
        timeout=options.timeout,
        nodes=options.nodes,
        local=options.local,
        tuning=Tuning(links={}),  # not what ALLREDUCE_TUNING names: that is what we write
    ) as comm:
        wrong = _refusal(comm, options)
        if wrong is None:
            _tune(comm, options)
            return 0
    raise UsageError(wrong)


def _refusal(comm: Communicator, options: TuneOptions) -> str | None:
    """Say why these ranks cannot do that; the same on all ranks."""
    mine = np.array([crc32(repr(options).encode())], np.int64)
    if len(set(comm.allgather(mine).tolist())) > 1:
        return "ranks were started with different options; give all the same"
    if comm.world_size == 1:
        return "one rank has nothing to tune; start it with a launcher, or with --ranks 4"
    problem = ""
    if comm.rank == 0:
        try:
            _others(options.output)  # before the minutes of measuring
            options.output.open("a").close()
        except OSError as error:
            problem = f"-o {options.output}: {error.strerror}; name another file"
        except UsageError as error:
            problem = f"-o {error}, or name another file"
    failed = comm.broadcast(np.array([bool(problem)]), root=0)
    return (problem or "-o: see rank 0") if failed[0] else None


def _tune(comm: Communicator, options: TuneOptions) -> None:
    speaks = comm.rank == 0

    def say(*lines: str) -> None:
        if speaks:
            print(*lines, sep="\n", flush=True)

    job = describe(comm)
    head = ["allreduce.tune: MEASURED on this job's ranks", str(comm.layout), *job.lines()[1:]]
    say(*(f"# {line}" for line in head))
    times = {}
    for collective, found in algorithm_times(comm, options):
        times[collective] = found
        so_far = tuned_by(comm, {collective: found})
        say(*table(comm.layout, so_far, collective, found))
    tuning = tuned_by(comm, times)
    trials = []
    for trial in best_options(comm, tuning):
        trials.append(trial)
        say(trial_line(trial))
    tuning = with_options(tuning, trials)
    say(*(f"{kind.replace('_', ' ')}: {link}" for kind, link in tuning.links.items()))
    if speaks:
        _write(options.output, tuning)
    comm.barrier()


def _others(output: Path) -> Tuning | None:
    """Return what the file holds already; UsageError if it is something else."""
    return read(output) if output.exists() and output.stat().st_size else None


def _write(output: Path, tuning: Tuning) -> None:
    before, (new,) = _others(output), tuning.layouts
    if before is not None:
        others = [t for t in before.layouts if (t.nodes, t.local) != (new.nodes, new.local)]
        links = {**before.links, **tuning.links}
        tuning = replace(tuning, links=links, layouts=(new, *others))
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    made = (
        f"{now}, hier-allreduce {allreduce.__version__}, {os.cpu_count()} x {cpu_name()}, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    aside = output.with_name(f".{output.name}.new")
    aside.write_text(text(tuning, made))
    aside.replace(output)  # whole, or not at all
    print(f"written: {output}; use it by init(tuning=...) or ALLREDUCE_TUNING={output}")
