"""Where the processes of a job meet: one that does not come is named, with its machine."""

from __future__ import annotations

import os
import time
from datetime import timedelta

from torch._C._distributed_c10d import Store, TCPStore
from torch.distributed import DistNetworkError, DistStoreError

from trainer.config.options import Config
from trainer.errors import TrainerError
from trainer.launch.directory_store import DirectoryStore

__all__ = ["Absent", "meet"]

_GRACE = 2.0  # seconds for the others to hear why rank 0 gives up
_LOOK = 0.02  # seconds between the first looks
_VERDICT = "trainer/verdict"


class Absent(TrainerError, TimeoutError):
    """A process or machine of the job did not come."""


def meet(config: Config) -> Store | None:
    """The store of the job, once every process has come to it; on rank 0's host.

    Of an elastic job it is a directory, which outlives rank 0.

    None under torchrun, whose agents have met before. Absent, which names the same ones on every
    process that has come, if some have not within `config.timeout` seconds.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return None
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    where = f"{host}:{port}"
    patience = timedelta(seconds=config.timeout)
    store: Store
    try:
        if config.elastic:
            store = DirectoryStore(config.timeout)
            store.expect(range(world_size))
        else:
            store = TCPStore(
                *(host, port, world_size), is_master=rank == 0, timeout=patience,
                wait_for_workers=False,
            )  # fmt: skip
        store.set(_here(rank), "")
        if rank == 0:
            store.set(_VERDICT, _verdict(store, config, world_size, where))
        # Rank 0 may have come last of all, so that its patience ends after ours.
        if not _present(store, [_VERDICT], 2 * config.timeout + _GRACE):
            raise Absent(f"rank 0 at {where} has come and says no more; look at its machine")
        verdict = store.get(_VERDICT).decode()
    except (DistStoreError, DistNetworkError) as error:
        reason = str(error).splitlines()[0]
        what = f"cannot listen on {where}" if rank == 0 else f"does not answer at {where}"
        who = "rank 0" if config.machines == 1 else "machine 0"
        raise Absent(f"{who} {what} ({reason})") from None
    if verdict:
        if rank == 0:
            time.sleep(_GRACE)
        raise Absent(verdict)
    return store


def _verdict(store: Store, config: Config, world_size: int, where: str) -> str:
    """Waits for all ranks; nothing, or who has not come."""
    _present(store, [_here(rank) for rank in range(world_size)], config.timeout)
    absent = [rank for rank in range(world_size) if not store.check([_here(rank)])]
    return _words(absent, config, where) if absent else ""


def _present(store: Store, keys: list[str], seconds: float) -> bool:
    """Waits for keys of the store. (Its own `wait` writes a stack trace when time is up.)"""
    deadline, pause = time.monotonic() + seconds, _LOOK
    while not store.check(keys):
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(2 * pause, 20 * _LOOK)
    return True


def _words(absent: list[int], config: Config, where: str) -> str:
    ranks = f"rank{'s' * (len(absent) > 1)} {', '.join(map(str, absent))}"
    late = f"not come to {where} within {config.timeout:g} s"
    if config.machines == 1:
        return f"{ranks} did {late}; --timeout waits longer"
    local = config.processes // config.machines
    machines = sorted({rank // local for rank in absent})
    names = ", ".join(map(str, machines))
    return (
        f"machine{'s' * (len(machines) > 1)} {names} of {config.machines} ({ranks}) did {late}: "
        f"start the command there with --machine {names}, see that it reaches {where}, or give a "
        "longer --timeout"
    )


def _here(rank: int) -> str:
    return f"trainer/here/{rank}"
