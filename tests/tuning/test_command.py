"""`python -m allreduce.tune` as its users start it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from allreduce.tuning.file import read

pytestmark = pytest.mark.timeout(110)

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 50  # seconds; a quiet machine takes three
QUICK = ("-b", "1K", "-e", "16K", "-f", "4", "--seconds", "0.1")


def environment(**variables: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path} | variables


def alone(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "allreduce.tune", *options],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )


def as_job(ranks: int, *options: str) -> list[tuple[int, str, str]]:
    """Start every rank with RANK and the like; `{rank}` in an option is replaced."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    jobs = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "allreduce.tune",
                *(o.replace("{rank}", str(r)) for o in options),
            ],
            env=environment(
                RANK=str(r), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=port
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(ranks)
    ]
    try:
        texts = [job.communicate(timeout=DEADLINE) for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    return [(job.returncode, *text) for job, text in zip(jobs, texts, strict=True)]


def test_ranks_on_this_machine_write_a_file_that_is_used(tmp_path: Path) -> None:
    file = tmp_path / "here.toml"
    done = alone("--ranks", "4", "--nodes", "2", *QUICK, "-o", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert "MEASURED" in done.stdout
    for words in ("allreduce: us a call", "allgather: us a call", "mean error of the model"):
        assert words in done.stdout
    for option in ("segment_bytes", "rails", "lanes"):
        assert f"{option}: time by value" in done.stdout
    tuning = read(file)
    (tuned,) = tuning.layouts
    assert (tuned.nodes, tuned.local) == ((2, 2), "rs_ag")
    assert {"allreduce", "allgather", "broadcast"} <= set(tuned.choices)
    assert set(tuning.links) == {"local_stage", "network"}
    chosen = {row.algorithm for row in tuned.choices["allreduce"]}
    shown = [line.split()[-3] for line in done.stdout.splitlines() if line.endswith("%")]
    assert chosen & set(shown)
    used = subprocess.run(
        [sys.executable, "-m", "allreduce.bench", "--ranks", "4", "--nodes", "2", "-n", "1"],
        env=environment(ALLREDUCE_TUNING=str(file)),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert (used.returncode, used.stderr) == (0, "")
    assert f"auto: {tuned.choices['allreduce'][0].algorithm}" in used.stdout


def test_a_file_keeps_its_other_layouts(tmp_path: Path) -> None:
    file = tmp_path / "two.toml"
    one = ("--ranks", "2", *QUICK, "--collectives", "allreduce", "-o", str(file))
    for nodes in ("1", "2", "2"):
        done = alone(*one, "--nodes", nodes)
        assert (done.returncode, done.stderr) == (0, "")
    tuning = read(file)
    assert [tuned.nodes for tuned in tuning.layouts] == [(1, 1), (2,)]
    assert set(tuning.links) == {"local_stage", "network"}


def test_ranks_of_a_launcher(tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    done = as_job(2, *QUICK, "--collectives", "allreduce", "-o", str(file))
    assert [code for code, _, _ in done] == [0, 0]
    assert "written: " in done[0][1]
    assert (done[0][2], *done[1][1:]) == ("", "", "")
    assert read(file).layouts[0].nodes == (2,)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("-o", "/nowhere/x.toml"), "-o /nowhere/x.toml: No such file or directory"),
        (("-o", __file__), "is no TOML"),
        (("-e", "1K"), "two sizes are the least"),
        (("-f", "{rank}2"), "ranks were started with different options"),
        (("--collectives", "gossip"), "'gossip' is none of"),
    ],
    ids=["folder", "foreign", "sizes", "ranks", "collective"],
)
def test_what_cannot_work_is_one_sentence_of_rank_0(options: tuple[str, ...], says: str) -> None:
    done = as_job(2, *options)
    assert [code for code, _, _ in done] == [2, 2]
    assert done[0][2].startswith("allreduce.tune: ")
    assert says in done[0][2]
    assert done[0][2].count("\n") == 1
    assert (done[0][1], *done[1][1:]) == ("", "", "")


def test_one_rank_has_nothing_to_tune() -> None:
    done = alone()
    assert done.returncode == 2
    assert "one rank has nothing to tune" in done.stderr
