"""The launcher with real worker processes that need no group: how jobs end, and what they leave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(120)

# A job whose workers run the body that the test gives; `rank` is known to it.
JOB = """
import os, signal, sys, time
from pathlib import Path
from trainer.config.command_line import parse
from trainer.launch.local_processes import launch, run_worker
folder = Path({folder!r})
if "RANK" not in os.environ:
    more = os.environ.get("JOB_OPTIONS", "").split()
    config = parse(["--workers", "3", "--nodes", "3", "--out", str(folder / "run"), *more], {{}})
    sys.exit(launch(config, (sys.executable, __file__)))
rank = int(os.environ["RANK"])
def work():
    (folder / f".pid{{rank}}").write_text(str(os.getpid()))
    (folder / f".pid{{rank}}").rename(folder / f"pid{{rank}}")  # seen whole or not at all
{body}
sys.exit(run_worker(lambda: work() or 0, traceback="--traceback" in sys.argv))
"""


@pytest.fixture
def start(tmp_path: Path):
    """Starts a job in a process group of its own; what still lives at the end is killed."""
    jobs = []

    def begin(body: str, options: str = "") -> subprocess.Popen[str]:
        script = tmp_path / "job.py"
        indented = "\n".join("    " + line for line in body.splitlines())
        script.write_text(JOB.format(folder=str(tmp_path), body=indented))
        jobs.append(
            subprocess.Popen(
                [sys.executable, str(script)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
                env={**os.environ, "JOB_OPTIONS": options},
            )
        )
        return jobs[-1]

    yield begin
    for job in jobs:
        if job.poll() is None:
            job.kill()
        job.wait(30)
        for stream in (job.stdout, job.stderr):
            stream.close()


def worker_pids(folder: Path, count: int = 3) -> list[int]:
    """The workers' process ids, once all have come as far as `work`."""
    files = [folder / f"pid{rank}" for rank in range(count)]
    deadline = time.monotonic() + 60
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline, "workers did not start"
        time.sleep(0.02)
    return [int(file.read_text()) for file in files]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def assert_gone(pids: list[int], within: float = 20) -> None:
    deadline = time.monotonic() + within
    while any(map(alive, pids)):
        assert time.monotonic() < deadline, "a worker is left behind"
        time.sleep(0.02)


def test_workers_get_the_environment_of_a_job(start, tmp_path: Path) -> None:
    names = ("WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "OMP_NUM_THREADS")
    body = f"(folder / f'env{{rank}}').write_text(' '.join(os.environ[n] for n in {names}))"
    _, errors = (job := start(body)).communicate(timeout=60)
    assert (job.returncode, errors) == (0, "")
    threads = os.environ.get("OMP_NUM_THREADS") or max(1, len(os.sched_getaffinity(0)) // 3)
    for rank in range(3):
        found = (tmp_path / f"env{rank}").read_text()
        assert found == f"3 {rank} 3 127.0.0.1 {threads}"


def test_only_rank_0_speaks_on_stdout(start) -> None:
    out, _ = start("print('rank', rank, flush=True)").communicate(timeout=60)
    assert out == "rank 0\n"


@pytest.mark.parametrize("guilty", [0, 2])
def test_a_failing_worker_ends_the_job_and_its_error_comes_once(start, tmp_path, guilty) -> None:
    job = start(
        f"if rank == {guilty}: raise ValueError('batch of the wrong colour')\ntime.sleep(99)"
    )
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 1
    assert errors.count("ValueError: batch of the wrong colour") == 1
    assert f"trainer: worker {guilty} of 3 failed with exit code 1; the others" in errors
    pids = [int(file.read_text()) for file in tmp_path.glob("pid*")]
    assert_gone(pids)


EXPECTED = [
    ("from trainer.data import DataError; raise DataError('a.jpeg: cut off')", "a.jpeg: cut off"),
    ("from trainer.errors import TrainerError; raise TrainerError('diverged')", "diverged"),
    ("from allreduce import PeerError; raise PeerError('rank 1 died', 1)", "rank 1 died"),
    ("raise OSError(28, 'No space left on device', '/data/x')", "/data/x: No space left on device"),
]


@pytest.mark.parametrize(("body", "says"), EXPECTED)
def test_an_expected_error_is_its_sentence_alone(start, body: str, says: str) -> None:
    _, errors = start(f"if rank == 2: {body}\ntime.sleep(99)").communicate(timeout=60)
    first, second = errors.splitlines()
    assert first == f"trainer: {says}"
    assert second.startswith("trainer: worker 2 of 3 failed with exit code ")


@pytest.mark.parametrize(("body", "says"), EXPECTED)
def test_its_traceback_is_there_for_the_asking(start, body: str, says: str) -> None:
    job = start(f"if rank == 2: {body}\ntime.sleep(99)", "--traceback")
    _, errors = job.communicate(timeout=60)
    assert "Traceback (most recent call last)" in errors
    assert "in work" in errors


def test_an_error_that_nobody_expects_keeps_its_traceback(start) -> None:
    _, errors = start("if rank == 1: {}['key']\ntime.sleep(99)").communicate(timeout=60)
    assert "Traceback (most recent call last)" in errors
    assert "KeyError: 'key'" in errors


def test_an_elastic_job_outlives_a_failing_worker_and_says_who_died(start) -> None:
    body = "if rank == 1: raise ValueError('the cause')\ntime.sleep(3)\nprint('end', flush=True)"
    out, errors = (job := start(body, "--elastic")).communicate(timeout=60)
    assert (job.returncode, out) == (0, "end\n")
    assert errors.count("ValueError: the cause") == 1
    assert "worker 1 of 3 failed with exit code 1; the others go on without it\n" in errors
    assert errors.splitlines()[-1].startswith("trainer: worker 1 died after ")


def test_an_elastic_job_fails_with_its_last_worker(start) -> None:
    body = "if rank == 1: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(2)\n{}['key']"
    _, errors = (job := start(body, "--elastic")).communicate(timeout=60)
    assert job.returncode == 1
    assert "worker 1 of 3 was killed by SIGKILL" in errors
    assert errors.count("KeyError: 'key'") == 1
    assert errors.splitlines()[-1].endswith("failed with exit code 1; the others were stopped")


def test_the_store_of_an_elastic_job_is_removed(start, tmp_path) -> None:
    body = "(folder / f'store{rank}').write_text(os.environ['TRAINER_STORE'])"
    start(body, "--elastic").communicate(timeout=60)
    stores = {(tmp_path / f"store{rank}").read_text() for rank in range(3)}
    assert len(stores) == 1
    assert not Path(*stores).exists()


def test_workers_have_their_numbers_of_the_whole_job_and_their_machine(start, tmp_path) -> None:
    options = "--workers=4 --nodes=0 --machines=2 --machine=1 --master=node0:29500"
    job = start("if rank == 3: raise ValueError('the cause')\ntime.sleep(99)", options)
    out, errors = job.communicate(timeout=60)
    assert "trainer: worker 3 of 4 (on machine 1 of 2) failed with exit code 1" in errors
    said = "machine 1 of 2, with workers 2 to 3 of 4: the output is on machine 0, at node0\n"
    assert out == said


def test_virtual_workers_are_not_taken_for_processes(start) -> None:
    options = "--workers=6 --workers-virtual=2"
    _, errors = start("if rank == 1: 1/0\ntime.sleep(99)", options).communicate(timeout=60)
    assert "trainer: process 1 of 3 failed" in errors


def test_under_another_launcher_the_sentence_has_the_rank(tmp_path: Path) -> None:
    program = (
        "from trainer.data import DataError\n"
        "from trainer.launch.local_processes import run_worker\n"
        "def work(): raise DataError('a.jpeg: cut off')\n"
        "raise SystemExit(run_worker(work))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False,
        env={**os.environ, "RANK": "7"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "trainer: rank 7: a.jpeg: cut off\n")


def test_the_cause_is_shown_not_the_peers_that_lost_it(start) -> None:
    job = start(
        "if rank == 1:\n"
        "    time.sleep(0.3)\n"
        "    raise ZeroDivisionError('the cause')\n"
        "raise ConnectionResetError('rank 1 is gone')"
    )
    _, errors = job.communicate(timeout=60)
    assert "the cause" in errors
    assert "is gone" not in errors


def test_a_worker_that_fails_while_all_save_is_the_cause(start, tmp_path) -> None:
    job = start(
        "asked = []\n"
        "def save(number, frame):\n"
        "    if rank == 2: raise ValueError('the disk is full')\n"
        "    asked.append(number)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "(folder / f'ready{rank}').touch()\n"
        "time.sleep(30)\n"
        "time.sleep(30)"
    )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("ready*"))) < 3:
        assert time.monotonic() < deadline, "workers did not start"
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 1
    assert "the disk is full" in errors
    assert "worker 2 of 3 failed with exit code 1" in errors


def test_lost_peers_alone_are_still_an_error(start) -> None:
    job = start("raise TimeoutError(f'rank {7} never came')")
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 1
    assert errors.count("rank 7 never came") == 1


def test_a_killed_worker_is_named_with_its_signal(start, tmp_path) -> None:
    job = start("time.sleep(99)")
    pids = worker_pids(tmp_path)
    os.kill(pids[1], signal.SIGKILL)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 1
    assert "trainer: worker 1 of 3 was killed by SIGKILL" in errors
    assert_gone(pids)


def test_what_a_worker_wrote_before_it_crashed_is_shown(start) -> None:
    body = "if rank == 2: os.write(2, b'terminate called'); os.abort()\ntime.sleep(99)"
    _, errors = start(body).communicate(timeout=60)
    assert "terminate called" in errors
    assert "worker 2 of 3 was killed by SIGABRT" in errors


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_all_workers(start, tmp_path, number: int, code: int) -> None:
    job = start("time.sleep(99)")
    pids = worker_pids(tmp_path)
    began = time.monotonic()
    if number == signal.SIGINT:  # a terminal sends it to its whole process group
        os.killpg(job.pid, number)
    else:
        os.kill(job.pid, number)
    _, errors = job.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert job.returncode == code
    assert "Traceback" not in errors
    assert_gone(pids)


def test_workers_that_ignore_sigterm_end_too(start, tmp_path) -> None:
    job = start("signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(99)")
    pids = worker_pids(tmp_path)
    os.kill(job.pid, signal.SIGINT)
    job.communicate(timeout=60)
    assert_gone(pids)


def test_workers_die_with_a_killed_launcher(start, tmp_path) -> None:
    job = start("time.sleep(99)")
    pids = worker_pids(tmp_path)
    job.kill()
    job.wait(30)
    assert_gone(pids)


def test_a_used_run_directory_is_refused_before_any_worker(start, tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").write_text("precious")
    _, errors = start("pass").communicate(timeout=60)
    assert "holds something, no checkpoint; name another directory" in errors
    assert not list(tmp_path.glob("pid*"))
    assert (tmp_path / "run" / "metrics.csv").read_text() == "precious"


def test_a_run_directory_that_cannot_be_made_is_refused(start, tmp_path) -> None:
    (tmp_path / "run").write_text("a file")
    _, errors = start("pass").communicate(timeout=60)
    assert "ConfigError: --out" in errors
    assert not list(tmp_path.glob("pid*"))
