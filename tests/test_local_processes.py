"""Processes that are started together: how they end, and that nothing of them is left."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from allreduce.commands.local_processes import LocalProcesses, how_it_ended

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
# Starts a process of its own, and tells which.
PARENT = """
import subprocess, sys, time
from pathlib import Path
child = subprocess.Popen(["sleep", "60"])
Path(sys.argv[1] + ".part").write_text(str(child.pid))
Path(sys.argv[1] + ".part").rename(sys.argv[1])
time.sleep(float(sys.argv[2]))
"""


def program(text: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", text, *map(str, arguments)]


def child_of(file: Path) -> int:
    deadline = time.monotonic() + 30
    while not file.exists():
        assert time.monotonic() < deadline, "the process does not start its child"
        time.sleep(0.01)
    return int(file.read_text())


def assert_ends(pid: int) -> None:
    deadline = time.monotonic() + 10
    while runs(pid):
        assert time.monotonic() < deadline, f"process {pid} is left"
        time.sleep(0.01)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:  # it has gone, perhaps just now
        return False


def test_codes_are_in_the_order_of_the_start() -> None:
    with LocalProcesses() as processes:
        for code in (3, 0, 7):
            processes.start(program(f"raise SystemExit({code})"))
        assert processes.wait(30)
        assert processes.codes() == [3, 0, 7]


def test_the_end_of_the_context_ends_all() -> None:
    with LocalProcesses() as processes:
        for _ in range(3):
            processes.start(SLEEP)
        assert processes.codes() == [None] * 3
        assert not processes.wait(0.05)
    assert processes.codes() == [-signal.SIGKILL] * 3


@pytest.mark.parametrize("seconds", [60, 0])  # it runs; it has ended before
def test_what_a_process_has_started_ends_with_it(tmp_path: Path, seconds: int) -> None:
    with LocalProcesses() as processes:
        processes.start(program(PARENT, tmp_path / "pid", seconds))
        child = child_of(tmp_path / "pid")
        assert processes.wait(0 if seconds else 30) == (seconds == 0)
        os.kill(child, 0)  # it is there
    assert_ends(child)


def test_a_signal_reaches_the_processes_that_run() -> None:
    with LocalProcesses() as processes:
        processes.start(SLEEP)
        processes.start(program("pass"))
        processes[1].wait(30)
        processes.send_signal(signal.SIGTERM)  # one has ended: no error
        assert processes.wait(30)
        assert processes.codes() == [-signal.SIGTERM, 0]


def test_a_process_has_a_session_of_its_own_and_no_input() -> None:
    text = "import os, sys; sys.exit(os.getsid(0) != os.getpid() or bool(sys.stdin.read()))"
    ours, other = os.pipe()
    before = os.dup(0)
    os.dup2(ours, 0)  # an input that somebody could read
    try:
        os.write(other, b"words\n")
        with LocalProcesses() as processes:
            processes.start(program(text))
            assert processes.wait(30)
            assert processes.codes() == [0]
    finally:
        os.dup2(before, 0)
        for descriptor in (ours, other, before):
            os.close(descriptor)


def test_nobody_is_killed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalProcesses() as processes:
        processes.start(SLEEP)
        processes.kill()
        monkeypatch.setattr(os, "killpg", lambda *_: pytest.fail("its number may be another's"))
        processes.kill()


def test_a_command_that_is_not_there_is_no_process() -> None:
    with LocalProcesses() as processes:
        processes.start(SLEEP)
        with pytest.raises(FileNotFoundError):
            processes.start(["/no/such/program"])
    assert processes.codes() == [-signal.SIGKILL]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (1, "failed with exit code 1"),
        (-signal.SIGSEGV, "was killed by SIGSEGV"),
        (-35, "was killed by signal 35"),  # a real-time signal without a name
    ],
)
def test_an_exit_code_in_words(code: int, words: str) -> None:
    assert how_it_ended(code) == words
