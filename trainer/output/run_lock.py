"""The lock of a run directory: one run at a time writes there."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from trainer.config.checks import ConfigError
from trainer.output.files import draft_of

__all__ = ["LOCK", "own_run_directory"]

LOCK = ".lock"  # in the run directory; it stays there, and says nothing once nobody holds it

_OURS = re.compile(  # files that are written under another name first
    r"epoch_\d+_image_\d+\.pt|(last|best|bad_loss)\.pt|config\.toml|(env|summary)\.json|metrics\..*"
)
_PATIENCE = 3.0  # seconds for a run that was just killed to be gone
_LOOK = 0.05  # seconds between tries


@contextlib.contextmanager
def own_run_directory(run: Path) -> Iterator[None]:
    """Makes the directory if need be; inside, no other process on any machine owns it.

    Drafts that killed processes have left there are removed. The kernel frees the lock when the
    process ends, however it ends. ConfigError, which names the
    owner, if another process owns it, or if the directory cannot be made or written to.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        what = "is no directory" if run.exists() and not run.is_dir() else "cannot be used"
        raise ConfigError(
            f"--out {run}: {what} ({error.strerror}); name a directory that can be written to"
        ) from None
    try:
        if _lock(run, descriptor):
            _sign(descriptor)
            _remove_drafts(run)
        yield
    finally:
        os.close(descriptor)


def _lock(run: Path, descriptor: int) -> bool:
    """Locks the file; False, and a line that says so, where the file system has no locks."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            # On NFS this is a lock of the server's, which holds for all machines.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                print(
                    f"trainer: {run}: the file system has no locks ({error.strerror}): nothing "
                    "keeps a second run out of it",
                    file=sys.stderr,
                )
                return False
        if time.monotonic() > deadline:
            owner = os.pread(descriptor, 256, 0).decode(errors="replace") or "another process"
            raise ConfigError(
                f"--out {run}: another run is writing there ({owner}); wait for it, or name "
                "another directory"
            )
        time.sleep(_LOOK)


def _sign(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # on a full disk the owner has no name
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)


def _remove_drafts(run: Path) -> None:
    """Removes what killed processes have left half written."""
    for folder in (run, run / "checkpoints"):
        with contextlib.suppress(OSError):
            for file in list(folder.iterdir()):
                if _OURS.fullmatch(draft_of(file.name)):
                    file.unlink(missing_ok=True)
