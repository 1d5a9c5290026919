"""Steps in which every rank publishes a value and rank 0 answers all, whoever comes or dies.

A step ends when all ranks have come that took part in the step before, or at its deadline. The
ranks that have not come by then are left out of all later steps, and rank 0 knows in which step
they fell silent.

Values are JSON in the store, in parts small enough for any path: where a network loses large
packets, they pass, and the doctor can say so.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from allreduce.errors import MismatchError, Timeout
from allreduce.rendezvous.store import Store, add, backoff, get_many, store_errors

__all__ = ["ARRIVAL", "Gathering"]

ARRIVAL = "arrival"
_PART_BYTES = 400
_MARGIN = 20.0  # seconds that rank 0 may be later than the others in a step
_LEAVE_SECONDS = 2.0


class Gathering:
    """What one rank sees of the steps. Values are by rank; rank 0 keeps those of all ranks."""

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        self._store = store
        self._rank = rank
        self._world_size = world_size
        self._awaited = set(range(world_size))
        self._process_of: dict[int, int] = {}  # ranks whose process rank 0 can see
        self._collecting = ""
        self.values: dict[str, dict[int, Any]] = {}  # of each step, on rank 0
        self.silent: dict[int, str] = {}  # the step in which a rank did not come

    @property
    def came(self) -> list[int]:
        """Return the ranks that took part in the last step."""
        return sorted(self._awaited)

    @property
    def hosts(self) -> dict[int, str]:
        """Return the host of each rank that arrived, be it only for a moment."""
        arrived = self.values.get(ARRIVAL, {})
        return {rank: str(entry.get("host")) for rank, entry in arrived.items()}

    def repeated(self) -> dict[int, list[str]]:
        """Return the hosts of further processes that claim a rank; on rank 0."""
        found = self._read([f"claimant/{rank}" for rank in range(self._world_size)])
        return {rank: [host] for rank, host in enumerate(found) if host is not None}

    def arrive(self, host: str, seconds: float) -> None:
        """Say that this rank is there, and on rank 0 wait for the others.

        Raises:
            MismatchError: another process has said so of this rank.
        """
        if add(self._store, f"claims/{self._rank}", 1) > 1:
            self._put(f"claimant/{self._rank}", host)
            raise MismatchError(
                f"another process says that it is rank {self._rank}; give each its own"
            )
        mine = {"host": host, "pid": os.getpid(), "pids": _process_namespace()}
        arrived = self.step(ARRIVAL, mine, seconds, lambda values: sorted(values))
        assert isinstance(arrived, list)
        if self._rank == 0:
            for rank, entry in self.values[ARRIVAL].items():
                if entry.get("pids") == mine["pids"] != "":
                    self._process_of[rank] = int(entry["pid"])

    def step(
        self, what: str, mine: object, seconds: float, reply: Callable[[dict[int, Any]], Any]
    ) -> Any:
        """Publish `mine`, not None, and return what rank 0 makes of all values, by `reply`.

        Raises:
            Timeout: rank 0 did not answer, or had given this rank up.
        """
        if self._rank != 0:
            self._put(f"{what}/{self._rank}", mine)
            return self._hear(what, seconds + _MARGIN)
        self.values[what] = values = {0: mine}
        self._collecting = what
        self._collect(what, values, seconds)
        self.give_up()
        # By way of JSON on rank 0 too: keys become text there.
        answer = json.loads(json.dumps(reply(values)))
        self._put(f"{what}/reply", {"came": sorted(values), "answer": answer})
        return answer

    def give_up(self) -> None:
        """Note who has not come in the step that rank 0 is in, and await them no more."""
        if self._collecting:
            came = set(self.values[self._collecting])
            self.silent |= dict.fromkeys(self._awaited - came, self._collecting)
            self._awaited = came
            self._collecting = ""

    def leave(self, code: int) -> int:
        """Return the exit code of rank 0 on all ranks. Rank 0, which serves the store, is last."""
        if self._rank != 0:
            found = self._hear("end", _MARGIN)
            self._put(f"left/{self._rank}", True)
            return int(found)
        self._put("end/reply", {"came": sorted(self._awaited), "answer": code})
        keys = [f"left/{rank}" for rank in sorted(self._awaited - {0})]
        for _ in backoff(time.monotonic() + _LEAVE_SECONDS, self._world_size):
            if not keys or self._store.check(keys):
                break
        return code

    def _collect(self, what: str, values: dict[int, Any], seconds: float) -> None:
        for _ in backoff(time.monotonic() + seconds, self._world_size):
            left = sorted(self._awaited - set(values))
            found = self._read([f"{what}/{rank}" for rank in left])
            values |= {r: value for r, value in zip(left, found, strict=True) if value is not None}
            if all(rank in values or self._has_died(rank) for rank in self._awaited):
                break

    def _has_died(self, rank: int) -> bool:
        """Tell whether a process that rank 0 can see has ended."""
        if rank not in self._process_of:
            return False
        try:
            stat = Path(f"/proc/{self._process_of[rank]}/stat").read_text()
        except OSError:
            return True
        return stat.rpartition(")")[2].split()[0] == "Z"

    def _hear(self, what: str, seconds: float) -> Any:
        for _ in backoff(time.monotonic() + seconds, self._world_size):
            (found,) = self._read([f"{what}/reply"])
            if found is None:
                continue
            if self._rank not in found["came"]:
                raise Timeout(f"rank 0 went on to the step after {what} without this rank")
            return found["answer"]
        raise Timeout(f"rank 0 did not answer in the step {what} within {seconds:g} s")

    def _put(self, key: str, value: object) -> None:
        text = json.dumps(value).encode()
        parts = [text[at : at + _PART_BYTES] for at in range(0, len(text), _PART_BYTES)]
        with store_errors(key):
            for number, part in list(enumerate(parts))[1:]:
                self._store.set(f"{key}/{number}", part)
            self._store.set(key, f"{len(parts)}:".encode() + parts[0])  # last: all is there

    def _read(self, keys: list[str]) -> list[Any]:
        """Return the values under some keys, None where one is not there yet."""
        found: list[Any] = []
        with store_errors(keys[0] if keys else ""):
            for key, first in zip(keys, get_many(self._store, keys) if keys else [], strict=True):
                if first is None:
                    found.append(None)
                    continue
                count, _, text = bytes(first).partition(b":")
                rest = [bytes(self._store.get(f"{key}/{n}")) for n in range(1, int(count))]
                found.append(json.loads(text + b"".join(rest)))
        return found


def _process_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
