"""Section: the section `kernels` in its smallest form, under NVIDIA's compute-sanitizer."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks.gpu.rows import Impossible, Rows
from benchmarks.gpu.section_processes import ROOT

_TOOLS = {  # errors of API calls are torch's business: it asks, is refused, and goes on
    "memcheck": ["--report-api-errors", "no"],
    "initcheck": [],
    "synccheck": [],
}
_SECONDS = 60.0  # for one tool
_SUMMARY = re.compile(r"ERROR SUMMARY: (\d+) error")
_PLACES = ("/usr/local/cuda/bin/compute-sanitizer", "/opt/cuda/bin/compute-sanitizer")


def run(rows: Rows) -> None:
    """Racecheck is left out: it sees shared memory alone, which these kernels do not use."""
    if rows.place.gpu is None:
        raise Impossible("there is no GPU to run the kernels on")
    found = shutil.which("compute-sanitizer") or next(filter(shutil.which, _PLACES), None)
    if found is None:
        raise Impossible("compute-sanitizer is not installed")
    for tool, options in _TOOLS.items():
        _run(rows, [found, "--tool", tool, "--launch-timeout", "60", *options], tool)


def _run(rows: Rows, command: list[str], tool: str) -> None:
    on = rows.place.on("")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows")
        command += [sys.executable, "-m", "benchmarks.gpu.section_processes", "kernels", str(file)]
        command += [json.dumps(asdict(rows.place)), "1"]
        try:
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=_SECONDS
            )
        except subprocess.TimeoutExpired:
            rows.absent(f"kernels under {tool}", f"it did not end within {_SECONDS:.0f} s")
            return
        ended = '"end": "ok"' in file.read_text() if file.exists() else False
    output = done.stdout + done.stderr
    summary = _SUMMARY.search(output)
    if summary is None:  # the tool itself did not work: nothing is known about the kernels
        rows.absent(f"kernels under {tool}", " ".join(output.split())[-400:])
        return
    errors = int(summary[1])
    first = next(
        (line for line in output.splitlines() if "=====" in line and "Invalid" in line), ""
    )
    note = f"{errors} errors {first}".strip() if errors else "no errors"
    rows.check(f"kernels under {tool}", errors == 0 and ended, on=on, note=note)
