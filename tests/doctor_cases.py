"""Runs of `python -m allreduce.doctor` with faults planted on some ranks or hosts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from emulate_cases import command

__all__ = ["DOCTOR", "Rank", "Report", "on_hosts", "on_this_machine", "sampled"]

ROOT = Path(__file__).resolve().parents[1]
DOCTOR = (sys.executable, "-m", "allreduce.doctor")
_OPTIONS = ("--timeout", "20", "--step", "15")
_DEADLINE = 80.0


@dataclass(frozen=True, kw_only=True)
class Rank:
    """How one rank on this machine is started. `wrapper` stands before its command."""

    rank: int | None = None  # None: its place in the list
    wrapper: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    program: Sequence[str] = DOCTOR
    options: Sequence[str] = _OPTIONS


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the run said."""

    codes: list[int]
    output: str
    findings: list[dict[str, Any]]

    @property
    def kinds(self) -> list[str]:
        """The faults that were named."""
        return [finding["kind"] for finding in self.findings]

    @property
    def text(self) -> str:
        """All sentences and remedies."""
        return "\n".join(f"{f['severity']}: {f['text']}: {f['remedy']}" for f in self.findings)


def on_this_machine(folder: Path, *ranks: Rank, world_size: int = 0) -> Report:
    """Start ranks as a launcher does that sets RANK and the like."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    output = folder / "doctor.json"
    running = []
    for place, rank in enumerate(ranks):
        number = place if rank.rank is None else rank.rank
        environ = {
            **os.environ,
            "RANK": str(number),
            "WORLD_SIZE": str(world_size or len(ranks)),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "PYTHONPATH": str(ROOT),
            **rank.variables,
        }
        words = [*rank.wrapper, *rank.program, *rank.options]
        words += ["--json", str(output)] if number == 0 and rank.options else []
        running.append(
            subprocess.Popen(
                words,
                env=environ,
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        said = [process.communicate(timeout=_DEADLINE)[0] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    return _report([process.returncode for process in running], "".join(said), output)


def on_hosts(
    folder: Path,
    plants: Mapping[int, str],
    *options: str,
    emulation: Sequence[str] = (),
    hosts: int = 2,
    ranks: int = 1,
    rate: str = "200Mbit",
    delay: str = "1ms",
    program: str = "-m allreduce.doctor",
) -> Report:
    """Start ranks on emulated hosts, after a shell script on some of the hosts."""
    output = folder / "doctor.json"
    cases = " ".join(f"{host}) {script};;" for host, script in plants.items())
    json_option = f'$([ "$RANK" = 0 ] && echo --json {output})'
    script = (
        f"set -e; case $NODE_RANK in {cases} esac; "
        f"exec {sys.executable} {program} {' '.join((*_OPTIONS, *options))} {json_option}"
    )
    words = ("--hosts", str(hosts), "--rate", rate, "--delay", delay)
    words += ("--ranks-per-host", str(ranks), *emulation, "--", "sh", "-c", script)
    done = subprocess.run(
        command(*words),
        capture_output=True,
        text=True,
        timeout=_DEADLINE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    return _report([done.returncode], done.stdout + done.stderr, output)


def sampled(names: Iterable[str], left_to_full: Collection[str]) -> list[Any]:
    """Return the names of plants for `parametrize`; some run with `-m full` alone."""
    full = pytest.mark.full
    return [pytest.param(name, marks=full) if name in left_to_full else name for name in names]


def _report(codes: list[int], output: str, file: Path) -> Report:
    text = file.read_text() if file.exists() else ""
    findings = json.loads(text)["findings"] if text else []
    return Report(codes=codes, output=output, findings=findings)
