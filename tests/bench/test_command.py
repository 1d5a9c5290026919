"""`python -m allreduce.bench` as its users start it."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from allreduce.bench.cases import KINDS
from allreduce.bench.command import main
from allreduce.schedules import algorithms

pytestmark = pytest.mark.timeout(110)

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 50  # seconds; a quiet machine takes one
BENCH = (sys.executable, "-m", "allreduce.bench")
SMALL = ("-b", "4K", "-e", "64K", "-f", "16", "-n", "5", "-w", "1")
# A rank whose results are wrong in one element.
CORRUPT = """
import os, sys
from allreduce.bench import cases, command
class Corrupt(cases.Case):
    def count_wrong(self, salt):
        if os.environ["RANK"] == "1":
            self._data[-1] = 99
        return super().count_wrong(salt)
import allreduce.bench.rows
allreduce.bench.rows.Case = Corrupt
sys.exit(command.main(sys.argv[1:]))
"""


def environment(**variables: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path} | variables


def alone(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*BENCH, *options],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )


def as_job(
    ranks: int, *options: str, program: tuple[str, ...] = BENCH
) -> list[subprocess.CompletedProcess[str]]:
    """Start every rank with RANK and the like; `{rank}` in an option is replaced."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    jobs = []
    for rank in range(ranks):
        words = [option.replace("{rank}", str(rank)) for option in options]
        job = subprocess.Popen(
            [*program, *words],
            env=environment(**common, RANK=str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        jobs.append(job)
    try:
        texts = [job.communicate(timeout=DEADLINE) for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    return [
        subprocess.CompletedProcess(job.args, job.returncode, *text)
        for job, text in zip(jobs, texts, strict=True)
    ]


def rows_of(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize(("ranks", "nodes"), [(2, 1), (3, 1), (3, 2)])
def test_ranks_on_this_machine(ranks: int, nodes: int) -> None:
    done = alone("--ranks", str(ranks), "--nodes", str(nodes), *SMALL)
    assert (done.returncode, done.stderr) == (0, "")
    assert [row[:5] for row in rows_of(done.stdout)] == [
        ["4096", "1024", "float32", "sum", "-1"],
        ["65536", "16384", "float32", "sum", "-1"],
    ]
    assert "MEASURED" in done.stdout
    assert "# Out of bounds values : 0 OK" in done.stdout


@pytest.mark.parametrize("collective", KINDS)
def test_every_collective_runs_and_says_what_it_was(collective: str, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    options = ("--ranks", "3", "--nodes", "2", "--collective", collective, "-r", "2")
    done = alone(*options, *SMALL, "--json", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(file.read_text())
    assert (result["label"], result["wrong"], result["job"]["ranks"]) == ("MEASURED", 0, 3)
    assert result["job"]["node_of_rank"] == [0, 0, 1]
    kind = KINDS[collective]
    assert len(result["rows"]) == 2
    for row in result["rows"]:
        assert row["size"] == row["count"] * 4 * (3 if kind.parts else 1)
        assert row["root"] == (2 if kind.rooted else -1)
        assert row["redop"] == ("sum" if kind.reduces else "none")
        assert 0 < row["min_us"] <= row["p50_us"] <= row["p99_us"] <= row["max_us"]
        assert row["algbw_gbps"] == pytest.approx(row["size"] / row["p50_us"] / 1e3)
        assert row["busbw_gbps"] == pytest.approx(row["algbw_gbps"] * kind.factor(3))
        assert row["cpu_s_per_gb"] >= 0
        assert row["calls"] == 5


def test_bytes_of_a_broadcast_are_its_payload_to_the_other_node(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    options = (
        "--ranks",
        "2",
        "--nodes",
        "2",
        "--collective",
        "broadcast",
        "-b",
        "64K",
        "-e",
        "64K",
    )
    assert alone(*options, "-n", "3", "--json", str(file)).returncode == 0
    (row,) = json.loads(file.read_text())["rows"]
    assert row["shared_memory_bytes"] == 0
    assert 64 << 10 <= row["network_bytes"] < (64 << 10) + 1024  # and its headers


def test_all_means_every_algorithm_and_auto_shows_its_choice() -> None:
    done = alone(
        "--ranks", "2", "--nodes", "2", "--algo", "auto,all", "-b", "64", "-e", "64", "-n", "3"
    )
    names = [row[5] for row in rows_of(done.stdout)]
    assert names == ["auto:", *algorithms("allreduce")]
    assert rows_of(done.stdout)[0][6] in algorithms("allreduce")


def test_one_node_is_not_said_to_run_an_algorithm() -> None:
    done = alone("--ranks", "2", "--algo", "all", "-b", "64", "-e", "64", "-n", "3")
    assert [row[5:7] for row in rows_of(done.stdout)] == [["shared", "memory"]]
    options = ("--local", "none", "--algo", "ring", "-b", "64", "-e", "64", "-n", "3")
    done = alone("--ranks", "2", *options)
    assert [row[5] for row in rows_of(done.stdout)] == ["ring"]


def test_symmetric_memory_is_shown_beside_private() -> None:
    done = alone("--ranks", "2", "--symmetric", "-d", "half,bfloat16", "-o", "avg", *SMALL)
    assert done.returncode == 0
    found = [(row[2], row[7]) for row in rows_of(done.stdout)]
    kinds = [("float16", "private"), ("float16", "symmetric")] * 2
    assert found == kinds + [(name.replace("float16", "bfloat16"), kind) for name, kind in kinds]


def test_variables_alone_and_only_rank_0_prints() -> None:
    done = as_job(3, *SMALL)
    assert [(rank.returncode, rank.stderr) for rank in done] == [(0, "")] * 3
    assert len(rows_of(done[0].stdout)) == 2
    assert [rank.stdout for rank in done[1:]] == ["", ""]


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_torchrun() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "allreduce.bench", *SMALL]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=2 * DEADLINE
    )
    assert done.returncode == 0, done.stderr
    assert len(rows_of(done.stdout)) == 2


def test_it_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('torch is not to be imported')")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    assert alone("--ranks", "2", *SMALL, PYTHONPATH=path).returncode == 0


def test_a_wrong_result_is_counted_and_fails_all_ranks() -> None:
    done = as_job(2, *SMALL, program=(sys.executable, "-c", CORRUPT))
    assert [rank.returncode for rank in done] == [1, 1]
    assert "# Out of bounds values : 2 FAILED" in done[0].stdout


def test_without_a_check_nothing_is_said_of_the_results() -> None:
    done = as_job(2, *SMALL, "-c", "0", program=(sys.executable, "-c", CORRUPT))
    assert [rank.returncode for rank in done] == [0, 0]
    assert "# Out of bounds values : not checked" in done[0].stdout
    assert " N/A " in done[0].stdout


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--algo", "star"), "--algo star: allreduce does not know it; there are recursive"),
        (("--collective", "sendrecv", "--algo", "ring"), "it has no choice; leave it out"),
        (("--collective", "barrier"), "argument --collective: invalid choice"),
        (("-b", "many"), "argument -b/--minbytes: 'many' is no size"),
        (("-b", "1M", "-e", "1K"), "-e 1024 is less than -b 1048576"),
        (("-f", "1"), "argument -f/--stepfactor: '1' is no integer of 2 or more"),
        (("-n", "0"), "argument -n/--iters: '0' is no integer of 1 or more"),
        (("-d", "float8"), "argument -d/--datatype: 'float8' is none of"),
        (("-o", "xor"), "argument -o/--op: 'xor' is none of"),
        (("-o", "avg", "-d", "int32"), "-o avg -d int32: op 'avg'"),
        (("--symmetric", "--collective", "gather"), "--symmetric goes with allreduce"),
        (("--timeout", "0"), "argument --timeout: '0' is no positive number"),
        (("--ranks", "100000"), "--ranks 100000: at most 512"),
        (("--frob",), "unrecognized arguments: --frob"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, tuple) else "",
)
def test_bad_options_are_one_sentence_of_rank_0(
    options: tuple[str, ...], says: str, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "15000")
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as left:
            main(options)
        out, errors = capsys.readouterr()
        assert (left.value.code, out, errors.count("\n")) == (2, "", lines)
        assert not lines or says in errors


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("-b", "0"), "argument -b/--minbytes: '0' is no size"),
        (("--collective", "reduce", "-r", "2"), "-r 2: there are ranks 0 to 1"),
        (("--nodes", "3"), "nodes=3: 2 ranks can be split into 1 to 2 nodes"),
        (("--json", "/nowhere/out.json"), "--json /nowhere/out.json: No such file or directory"),
        (("-w", "{rank}"), "ranks were started with different options"),
        (("--ranks", "2"), "--ranks starts ranks itself; leave it out under environment"),
    ],
    ids=lambda value: "_".join(value).replace("/", "") if isinstance(value, tuple) else "",
)
def test_bad_options_end_all_ranks(options: tuple[str, ...], says: str) -> None:
    done = as_job(2, *options)
    assert [rank.returncode for rank in done] == [2, 2]
    assert says in done[0].stderr
    assert done[0].stderr.count("\n") == 1
    assert [done[0].stdout, done[1].stdout, done[1].stderr] == ["", "", ""]


def test_bad_options_of_ranks_on_this_machine() -> None:
    done = alone("--ranks", "2", "-r", "2", "--collective", "reduce")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "allreduce.bench: -r 2: there are ranks 0 to 1\n"


def test_help_is_printed_once() -> None:
    done = as_job(2, "--help")
    assert [rank.returncode for rank in done] == [0, 0]
    assert "--stepfactor" in done[0].stdout
    assert done[1].stdout == ""


@pytest.fixture
def endless() -> Iterator[subprocess.Popen[str]]:
    """Two ranks that measure for as long as they are let, and have begun."""
    with subprocess.Popen(
        [*BENCH, "--ranks", "2", "-b", "64", "-e", "64", "-n", "100000000"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as job:
        assert job.stdout is not None
        assert "MEASURED" in job.stdout.readline()
        pids = ranks_of(job)
        yield job
        job.kill()
        for pid in filter(is_alive, pids):  # where the test has failed
            os.kill(pid, signal.SIGKILL)


def ranks_of(job: subprocess.Popen[str]) -> list[int]:
    return [int(p) for p in Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()]


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + DEADLINE
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "ranks are left behind"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_rank_ends_the_benchmark(endless: subprocess.Popen[str]) -> None:
    pids = ranks_of(endless)
    os.kill(pids[1], signal.SIGKILL)
    _, errors = endless.communicate(timeout=DEADLINE)
    assert endless.returncode == 1
    assert "rank 1 was killed by SIGKILL" in errors
    wait_until_gone(pids)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_rank_outlives_the_benchmark(
    endless: subprocess.Popen[str], number: signal.Signals
) -> None:
    pids = ranks_of(endless)
    endless.send_signal(number)
    endless.communicate(timeout=DEADLINE)
    assert endless.returncode != 0
    assert len(pids) == 2
    wait_until_gone(pids)
