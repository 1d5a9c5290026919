"""The command that goes on with a run: the one that began it, with the run's directory."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["command_again", "with_directory"]

_PROGRAM = "trainer.run"
_PROC = Path("/proc")


def command_again(directory: str) -> str:
    """The command for the shell, from the folder where the job began, that goes on in `directory`.

    Launchers that this process descends from (torchrun, mpirun ...) are part of it. Where a daemon
    of another kind has started it, as SLURM's does, a comment says that the launcher is missing.
    """
    named = [words for words in _command_lines(os.getpid()) if _PROGRAM in words]
    # The outermost one: torchrun and mpirun begin processes that name the trainer, too.
    command = named[-1] if named else list(sys.orig_argv)
    alone = len(named) < 2 and "RANK" in os.environ
    note = "  # by the launcher that began it" if alone else ""
    return shlex.join(with_directory(command, directory)) + note


def with_directory(command: Sequence[str], directory: str) -> list[str]:
    """The command with `--out directory`, and without what begins a run another way."""
    kept: list[str] = []
    words = iter(command)
    for word in words:
        name, given, value = word.partition("=")
        if name not in ("--out", "--resume"):
            kept.append(word)
            continue
        value = value if given else next(words, "")
        if name == "--resume" and value in ("auto", "strict"):  # both go on, others begin
            kept.append(f"{name}={value}")
    return [*kept, f"--out={directory}"]


def _command_lines(pid: int) -> Iterator[list[str]]:
    """Of a process, its parent and so on; those that may not be seen are left out."""
    while pid > 1:
        try:
            text = (_PROC / str(pid) / "cmdline").read_bytes()
            state = (_PROC / str(pid) / "stat").read_text()
        except OSError:
            return
        yield [os.fsdecode(word) for word in text.split(b"\0")[:-1]]
        pid = int(state.rpartition(")")[2].split()[1])
