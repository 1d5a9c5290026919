"""The server that forks the ranks of tests: programs end as programs do, and none is left."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fork_server import Forked, ForkServer

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def server() -> Iterator[ForkServer]:
    started = ForkServer(["json"], {**os.environ, "PYTHONPATH": str(ROOT)})
    yield started
    started._control.close()
    started._server.wait(10)


def start(server: ForkServer, folder: Path, text: str) -> Forked:
    program = folder / "program.py"
    program.write_text(text)
    return server.start(program, {**os.environ, "WORD": "hello"}, folder / "log")


def test_a_program_ends_as_programs_do(server: ForkServer, tmp_path: Path) -> None:
    text = """
import atexit, os, sys
from dataclasses import dataclass

@dataclass
class Point:
    x: int

atexit.register(print, "at exit")
print(os.environ["WORD"], __name__, os.getcwd(), Point.__annotations__["x"], flush=True)
sys.exit(3)
"""
    assert start(server, tmp_path, text).wait(20) == 3
    said = (tmp_path / "log").read_text()
    assert said == f"hello __main__ {tmp_path} <class 'int'>\nat exit\n"


def test_a_signal_is_a_negative_status(server: ForkServer, tmp_path: Path) -> None:
    program = start(server, tmp_path, "import time; time.sleep(60)")
    assert program.poll() is None
    program.kill()
    assert program.wait(20) == -signal.SIGKILL
    program.kill()  # of one that has ended: nothing


def test_a_test_that_listens_no_more_does_not_end_the_server(
    server: ForkServer, tmp_path: Path
) -> None:
    start(server, tmp_path, "import time; time.sleep(0.1)")._told.close()
    time.sleep(0.5)
    assert start(server, tmp_path, "raise SystemExit(7)").wait(20) == 7


def test_programs_end_with_their_server(server: ForkServer, tmp_path: Path) -> None:
    program = start(server, tmp_path, "import time; time.sleep(60)")
    server._server.kill()
    assert program.wait(20) == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while Path(f"/proc/{program.pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{program.pid}").exists()


def test_a_module_that_is_not_there_is_an_error_at_once() -> None:
    with pytest.raises(AssertionError, match="cannot import"):
        ForkServer(["no_such_module"], {**os.environ, "PYTHONPATH": str(ROOT)})
