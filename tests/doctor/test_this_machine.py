"""Faults planted on ranks of this machine: the doctor names each one, and nothing else."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from doctor_cases import DOCTOR, ROOT, Rank, Report, on_this_machine, sampled

pytestmark = pytest.mark.timeout(100)

_SECRET = "a secret of some length"
_DIES = (
    "import os, sys; import allreduce.doctor.steps as steps;"
    "steps.listen = lambda *a: os._exit(9);"
    "from allreduce.doctor.command import main; sys.exit(main())"
)


def _with(**variables: str) -> Rank:
    return Rank(variables=variables)


def _another_build(folder: Path) -> Rank:
    """A rank with another version of the package."""
    package = folder / "other" / "allreduce"
    shutil.copytree(
        ROOT / "allreduce", package, ignore=shutil.ignore_patterns("torch", "__pycache__")
    )
    init = package / "__init__.py"
    text = init.read_text()
    assert "__version__ = " in text
    init.write_text(text + '\n__version__ = "9.9.9"\n')
    return _with(PYTHONPATH=str(package.parent))


def _tuning_file(folder: Path) -> Rank:
    file = folder / "tuning.toml"
    words = ("-m", "allreduce.tune", "--ranks", "2", "-b", "1K", "-e", "4K", "-o", str(file))
    subprocess.run(
        [sys.executable, *words, "--seconds", "0.01"],
        check=True,
        capture_output=True,
        timeout=60,
        cwd=ROOT,
    )
    return _with(ALLREDUCE_TUNING=str(file))


def _open_secret(folder: Path) -> Rank:
    file = folder / "secret"
    file.write_text(_SECRET)
    file.chmod(0o644)
    return _with(ALLREDUCE_SECRET_FILE=str(file))


Plant = Callable[[Path], Sequence[Rank]]
_OK = Rank()
_PLANTS: dict[str, tuple[Plant, str, str]] = {
    "few descriptors": (
        lambda _: [_OK, Rank(wrapper=("prlimit", "--nofile=24"))],
        "descriptors",
        "may open 24 files, this job needs",
    ),
    "little locked memory": (
        lambda _: [_OK, _OK, Rank(wrapper=("prlimit", "--memlock=65536"))],
        "locked-memory",
        "rank 2 (HOST) may lock 64 KiB of memory, rank 0 8 MiB",
    ),
    "another build": (
        lambda folder: [_OK, _another_build(folder)],
        "build",
        "rank 1 (HOST) runs another hier-allreduce: version 9.9.9 (rank 0: ",
    ),
    "no secret": (
        lambda _: [_with(ALLREDUCE_SECRET=_SECRET), _OK, _with(ALLREDUCE_SECRET=_SECRET)],
        "secret-missing",
        "rank 1 (HOST) has no secret, but ranks 0, 2 have one",
    ),
    "no secret on rank 0": (
        lambda _: [_OK, _with(ALLREDUCE_SECRET=_SECRET), _with(ALLREDUCE_SECRET=_SECRET)],
        "secret-missing",
        "rank 0 (HOST) has no secret, but ranks 1, 2 have one",
    ),
    "another secret": (
        lambda _: [
            _with(ALLREDUCE_SECRET=_SECRET),
            _with(ALLREDUCE_SECRET=_SECRET + "!"),
            _with(ALLREDUCE_SECRET=_SECRET),
        ],
        "secret-differs",
        "rank 1 (HOST) has another secret than ranks 0, 2",
    ),
    "a secret that others can read": (
        lambda folder: [_OK, _open_secret(folder)],
        "secret",
        "must belong to this user and be closed to others",
    ),
    "no secret though one is required": (
        lambda _: [_with(ALLREDUCE_REQUIRE_AUTH="1")] * 2,
        "secret",
        "ranks 0, 1 (HOST): ALLREDUCE_REQUIRE_AUTH is set but there is no secret",
    ),
    "checksums on some ranks": (
        lambda _: [_OK, _OK, _with(ALLREDUCE_CHECKSUM="0")],
        "variable",
        "ALLREDUCE_CHECKSUM is 0 on rank 2 (HOST), and 1 on ranks 0, 1",
    ),
    "other nodes": (
        lambda _: [_OK, _with(ALLREDUCE_NODES="2")],
        "variable",
        "ALLREDUCE_NODES is 2 on rank 1 (HOST), and not set on rank 0",
    ),
    "nodes that do not fit": (
        lambda _: [_with(ALLREDUCE_NODES="0,0,1")] * 2,
        "nodes",
        "3 entries for 2 ranks",
    ),
    "connections on demand on some ranks": (
        lambda _: [_with(ALLREDUCE_CONNECT="needed"), _OK],
        "variable",
        "ALLREDUCE_CONNECT is not set on rank 1 (HOST), and needed on rank 0",
    ),
    "no such value": (
        lambda _: [_OK, _with(ALLREDUCE_CHECKSUM="yes")],
        "variable",
        "rank 1 (HOST): ALLREDUCE_CHECKSUM='yes': must be 0 or 1",
    ),
    "no such congestion control": (
        lambda _: [_with(ALLREDUCE_TCP_CONGESTION="vegas9")] * 2,
        "variable",
        "ALLREDUCE_TCP_CONGESTION=vegas9",
    ),
    "no such interface": (
        lambda _: [_OK, _with(ALLREDUCE_IFACE="eth9")],
        "address",
        "ALLREDUCE_IFACE=eth9: matches no interface that is up and has an address; this host has ",
    ),
    "no such tuning file": (
        lambda _: [_with(ALLREDUCE_TUNING="/no/such")] * 2,
        "variable",
        "/no/such",
    ),
    "a tuning file on some ranks": (
        lambda folder: [_tuning_file(folder), _OK],
        "tuning",
        "rank 1 (HOST) has no tuning file, unlike rank 0",
    ),
    "a rank that dies": (
        lambda _: [_OK, Rank(program=(sys.executable, "-c", _DIES)), _OK],
        "silent",
        "rank 1 (HOST) came, and fell silent in the step 'listen'",
    ),
    "another number of ranks": (
        lambda _: [_OK, _with(WORLD_SIZE="3")],
        "world-size",
        "rank 1 (HOST) has world size 3, rank 0 has 2",
    ),
}

_LEFT_TO_FULL = {
    "a secret that others can read",
    "connections on demand on some ranks",
    "no secret on rank 0",
    "no such tuning file",
    "no such value",
    "nodes that do not fit",
}


def _text(text: str) -> str:
    return text.replace("HOST", socket.gethostname())


def _check(report: Report, kind: str, text: str) -> None:
    assert report.kinds == [kind], (report.text, report.output)
    assert _text(text) in report.text, report.text
    assert f"[{kind}]" in report.output
    wrong = any(finding["severity"] == "error" for finding in report.findings)
    assert report.codes[0] == int(wrong)


@pytest.mark.parametrize("name", sampled(_PLANTS, _LEFT_TO_FULL))
def test_a_planted_fault_is_named_alone(name: str, tmp_path: Path) -> None:
    plant, kind, text = _PLANTS[name]
    _check(on_this_machine(tmp_path, *plant(tmp_path)), kind, text)


def test_ranks_pinned_to_one_core_are_named(tmp_path: Path) -> None:
    if (os.cpu_count() or 1) < 2 or shutil.which("taskset") is None:
        pytest.skip("pinning takes two cores and taskset")
    core = min(os.sched_getaffinity(0))
    pin = Rank(wrapper=("taskset", "-c", str(core)))
    report = on_this_machine(tmp_path, pin, _OK, pin)
    _check(report, "pinned", f"ranks 0, 2 (HOST) are all pinned to core {core} of the ")
    assert report.codes == [0, 0, 0]  # a warning


def test_as_many_descriptors_are_asked_for_as_the_library_needs(tmp_path: Path) -> None:
    def ranks(limit: int, *program: str) -> list[Rank]:
        words = {"program": program, "options": ()} if program else {}
        variables = {"ALLREDUCE_NODES": "2"}
        limited = Rank(wrapper=("prlimit", f"--nofile={limit}"), variables=variables, **words)
        return [Rank(variables=variables, **words), limited]

    report = on_this_machine(tmp_path, *ranks(20))
    match = re.search(r"may open 20 files, this job needs (\d+):", report.text)
    assert match, report.text
    needed = int(match[1])
    job = (sys.executable, "-c", "import allreduce; allreduce.init(measure=False)")
    assert on_this_machine(tmp_path, *ranks(needed, *job)).codes == [0, 0]
    assert on_this_machine(tmp_path, *ranks(needed - 1, *job)).codes[1] == 1


def test_a_rank_that_never_comes_is_named(tmp_path: Path) -> None:
    soon = Rank(options=("--timeout", "2", "--step", "15"))
    report = on_this_machine(tmp_path, soon, soon, world_size=3)
    _check(report, "missing", "rank 2 of 3 never came")
    assert report.codes == [1, 1]


def test_two_processes_of_one_rank_are_named(tmp_path: Path) -> None:
    soon = Rank(options=("--timeout", "2", "--step", "15"))
    report = on_this_machine(tmp_path, soon, soon, Rank(rank=1, options=soon.options))
    assert sorted(report.kinds) == ["missing", "repeated"]
    assert "2 processes say that they are rank 1" in report.text
    assert "another process says that it is rank 1" in report.output


def test_ranks_without_rank_0_say_so(tmp_path: Path) -> None:
    report = on_this_machine(tmp_path, Rank(rank=1, options=("--timeout", "1")), world_size=2)
    assert report.codes == [1]
    assert "rank 1: rank 0 never answered at 127.0.0.1:" in report.output


def test_a_healthy_job_has_nothing_wrong_and_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None;"  # importing it fails
        "from allreduce.doctor.command import main; sys.exit(main())"
    )
    rank = Rank(program=(sys.executable, "-c", code))
    report = on_this_machine(tmp_path, rank, rank)
    assert report.codes == [0, 0], report.output
    assert report.findings == []
    assert "\nnothing wrong was found\n" in report.output


def test_the_command_starts_ranks_of_its_own() -> None:
    done = subprocess.run(
        [*DOCTOR, "--ranks", "3"],
        capture_output=True,
        text=True,
        timeout=80,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "3 of 3 ranks" in done.stdout
    assert done.stdout.endswith("nothing wrong was found\n")
    assert done.stderr == ""


def test_a_launcher_that_ends_the_job_gets_a_report(tmp_path: Path) -> None:
    """As torchrun does when another rank has died: it sends SIGTERM."""
    code = (
        "import os, signal, sys, threading;"
        "import allreduce.doctor.gathering as gathering; wait = gathering.backoff;"
        "gathering.backoff = lambda *a: (os.kill(os.getpid(), signal.SIGTERM), wait(*a))[1];"
        "from allreduce.doctor.command import main; sys.exit(main())"
    )
    waits = Rank(program=(sys.executable, "-c", code), options=("--timeout", "50"))
    report = on_this_machine(tmp_path, waits, world_size=3)
    assert report.codes[0] == 1, report.output
    assert "error: the launcher ended the examination before its end" in report.output
    assert "error: ranks 1, 2 of 3 never came" in report.output
