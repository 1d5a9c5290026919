"""Sections as processes: one that crashes, hangs or spoils its CUDA context stays alone in that."""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from pathlib import Path

from allreduce.commands.local_processes import LocalProcesses
from benchmarks.gpu.place import Place
from benchmarks.gpu.rows import FAILED, IMPOSSIBLE, OK, TIMED_OUT, Impossible, Rows, Section, read

ROOT = Path(__file__).resolve().parents[2]
_TAIL = 600  # characters of a section's output


def run_apart(section: Section, place: Place, *, quick: bool, seconds: float) -> None:
    """Run a section in a process of its own, which is killed after `seconds`, with its ranks."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        rows, output = Path(folder, "rows"), Path(folder, "output")
        command = [
            sys.executable,
            "-m",
            "benchmarks.gpu.section_processes",
            section.name,
            str(rows),
        ]
        command += [json.dumps(asdict(place)), str(int(quick))]
        env = dict(os.environ)
        if place.gpu:  # streams that wait for each other need queues of their own in the device
            env.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
        else:
            env.setdefault("OMP_NUM_THREADS", "1")  # the ranks share the cores
            env["ALLREDUCE_DEVICE_RUNTIME"] = env.get("ALLREDUCE_DEVICE_RUNTIME", "cpu")
        with LocalProcesses() as processes, output.open("wb") as out:
            process = processes.start(command, env, cwd=ROOT, stdout=out, stderr=out)
            if not processes.wait(seconds):
                section.state = TIMED_OUT
                section.reason = f"it did not end within {seconds:.0f} s"
        code = process.returncode
        ended = section.state != TIMED_OUT
        read(rows, section)  # its own last word counts, even if it hung afterwards
        tail = output.read_text(errors="replace").strip()[-_TAIL:]
    if not section.state:
        section.state, section.reason = FAILED, f"its process ended with status {code}: {tail}"
    elif section.state in (FAILED, TIMED_OUT) and not (ended and section.reason):
        section.reason += f": {tail}" if tail else ""
    section.seconds = time.monotonic() - began


def run_here(name: str, rows: Rows) -> None:
    """Run a section in this process."""
    try:
        importlib.import_module(f"benchmarks.gpu.{name}").run(rows)
    except Impossible as reason:
        rows.end(IMPOSSIBLE, str(reason))
    except Exception as error:
        traceback.print_exc()
        rows.end(FAILED, f"{type(error).__name__}: {error}")
    else:
        failed = f"{rows.failures} checks failed" if rows.failures else ""
        rows.end(FAILED if failed else OK, failed)


if __name__ == "__main__":
    _name, _rows, _place, _quick = sys.argv[1:]
    run_here(_name, Rows(Path(_rows), Place(**json.loads(_place)), _quick == "1"))
