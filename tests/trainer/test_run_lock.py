"""One run at a time owns a run directory: the second is refused, a killed one leaves nothing."""

from __future__ import annotations

import contextlib
import fcntl
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.config.checks import ConfigError
from trainer.output.run_lock import own_run_directory

pytestmark = pytest.mark.timeout(600)

OWNER = """
import sys, time
from pathlib import Path
from trainer.output.run_lock import own_run_directory
with own_run_directory(Path(sys.argv[1])):
    print("owns it", flush=True)
    time.sleep(100)
"""


@contextlib.contextmanager
def owned(run: Path) -> Iterator[subprocess.Popen[str]]:
    """Inside, another process owns `run`."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER, run], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout.readline() == "owns it\n"
        yield owner
    finally:
        owner.kill()
        owner.communicate()


def test_a_second_run_is_refused_in_one_line_that_names_the_first(tmp_path: Path) -> None:
    with owned(tmp_path / "run") as owner:
        with pytest.raises(ConfigError) as caught, own_run_directory(tmp_path / "run"):
            pass
        assert f"another run is writing there (process {owner.pid} on " in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_killed_run_is_followed_at_once(tmp_path: Path) -> None:
    with owned(tmp_path) as owner:
        owner.send_signal(signal.SIGKILL)
        with own_run_directory(tmp_path):
            pass


def test_an_ended_run_owns_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        with own_run_directory(tmp_path):
            pass


def test_drafts_of_killed_runs_go_and_those_of_a_live_run_stay(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    drafts = [folder / name for name in (
        ".epoch_0001_image_000000064.pt.77", ".epoch_10000_image_000000000.pt.9", ".last.pt.78",
        ".best.pt.5", ".bad_loss.pt.3",
    )]  # fmt: skip
    drafts += [tmp_path / name for name in (".config.toml.4", ".metrics.jsonl.5", ".env.json.6")]
    others = [folder / "epoch_0001_image_000000000.pt", folder / "notes.txt", tmp_path / ".x.7"]
    with owned(tmp_path):
        for file in (*drafts, *others):
            file.write_text("half")
        with pytest.raises(ConfigError), own_run_directory(tmp_path):
            pass
        assert all(file.exists() for file in (*drafts, *others))
    with own_run_directory(tmp_path):
        assert [file.exists() for file in (*drafts, *others)] == [False] * 8 + [True] * 3


def test_a_file_system_without_locks_is_told_and_nothing_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / "checkpoints").mkdir()
    (draft := tmp_path / "checkpoints" / ".last.pt.78").write_text("")
    with own_run_directory(tmp_path):
        assert draft.exists()
    assert "nothing keeps a second run out of it" in capsys.readouterr().err


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        says = r"--out .*; name a directory that can"
        with pytest.raises(ConfigError, match=says), own_run_directory(out):
            pass


def test_the_second_of_two_jobs_is_refused_before_it_starts_workers(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "trainer.run", "--model=resnet8", "--workers=2", "--threads=1"]
    argv += ["--epochs=500", f"--out={tmp_path / 'run'}"]
    first = subprocess.Popen(
        argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 240
        metrics = tmp_path / "run" / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size):
            assert first.poll() is None
            assert time.monotonic() < deadline, "the first does not begin"
            time.sleep(0.05)
        second = subprocess.run(argv, capture_output=True, text=True, timeout=240, check=False)
        assert second.returncode == 2
        assert second.stderr.count("\n") == 1
        assert "another run is writing there (process " in second.stderr
        assert first.poll() is None
    finally:
        first.kill()
        first.wait(30)
