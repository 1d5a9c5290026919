"""Key-value stores through which the ranks of a group find each other.

A store is needed until the mesh is up, and by what makes a group from another one. Any object with
torch's `set`, `get` and `check` will do; torch itself is not imported. Keys carry the generation
(or come through a `PrefixStore`), so an earlier run's leftovers are never read; but those of
processes that asked to join: give each job a store of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from allreduce.errors import AbortedError, PeerError, Timeout, UsageError

__all__ = ["FileStore", "MemoryStore", "PrefixStore", "Store", "add", "backoff", "wait_for"]

_FIRST_POLL_SECONDS_PER_RANK = 0.00005
_FIRST_POLL_SECONDS_MAX = 0.001
_POLL_SECONDS_MAX = 0.05
_LOOK_SECONDS = 0.5
_POLL_SECONDS_PER_RANK = 0.0005


class Store(Protocol):
    """What a rendezvous needs; torch.distributed's stores have it as they are."""

    def set(self, key: str, value: bytes, /) -> object:
        """Store `value` under `key`; an earlier value is replaced."""
        ...

    def get(self, key: str, /) -> bytes:
        """Return the value of `key`; may block until it is there, up to the store's own timeout."""
        ...

    def check(self, keys: list[str], /) -> bool:
        """Tell at once whether all `keys` are there."""
        ...


class MemoryStore:
    """A store for threads of one process (each thread a rank)."""

    def __init__(self, timeout: float = 300.0) -> None:
        self._values: dict[str, bytes] = {}
        self._changed = threading.Condition()
        self._timeout = timeout

    def set(self, key: str, value: bytes, /) -> None:
        """Store `value` under `key`."""
        with self._changed:
            self._values[key] = bytes(value)
            self._changed.notify_all()

    def get(self, key: str, /) -> bytes:
        """Return the value of `key`; TimeoutError if it does not come."""
        with self._changed:
            if not self._changed.wait_for(lambda: key in self._values, self._timeout):
                raise Timeout(f"store: key {key!r} did not come within {self._timeout:g} s")
            return self._values[key]

    def check(self, keys: list[str], /) -> bool:
        """Tell whether all `keys` are there."""
        with self._changed:
            return all(key in self._values for key in keys)

    def add(self, key: str, amount: int, /) -> int:
        """Add to the number under `key`, 0 at first, and return the sum."""
        with self._changed:
            total = int(self._values.get(key, b"0")) + amount
            self._values[key] = str(total).encode()
            self._changed.notify_all()
            return total

    def delete_key(self, key: str, /) -> bool:
        """Remove `key`; tell whether it was there."""
        with self._changed:
            return self._values.pop(key, None) is not None


class FileStore:
    """A store in a directory that all ranks see: a file per key, written aside and renamed."""

    def __init__(self, path: str | os.PathLike[str], timeout: float = 300.0) -> None:
        self._path = Path(path)
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._timeout = timeout

    def _file(self, key: str) -> Path:
        return self._path / ("key-" + urllib.parse.quote(key, safe=""))

    def set(self, key: str, value: bytes, /) -> None:
        """Store `value` under `key`; readers see all of it or nothing."""
        aside = self._path / f"new-{os.getpid()}-{random.SystemRandom().getrandbits(64):016x}"
        try:
            with os.fdopen(
                os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb"
            ) as file:
                file.write(value)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(self._file(key))
        except BaseException:
            aside.unlink(missing_ok=True)
            raise

    def get(self, key: str, /) -> bytes:
        """Return the value of `key`; TimeoutError if it does not come."""
        for _ in backoff(time.monotonic() + self._timeout):
            with contextlib.suppress(FileNotFoundError):
                return self._file(key).read_bytes()
        raise Timeout(f"store: key {key!r} did not come to {self._path} within {self._timeout:g} s")

    def check(self, keys: list[str], /) -> bool:
        """Tell whether all `keys` are there."""
        return all(self._file(key).exists() for key in keys)

    def add(self, key: str, amount: int, /) -> int:
        """Add to the number under `key`, 0 at first, and return the sum."""
        with (self._path / "lock").open("a") as lock:  # which a process that dies lets go
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                old = self._file(key).read_bytes() if self.check([key]) else b"0"
                total = int(old) + amount
                self.set(key, str(total).encode())
                return total
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)  # a child that was forked meanwhile has it, too

    def delete_key(self, key: str, /) -> bool:
        """Remove `key`; tell whether it was there."""
        try:
            self._file(key).unlink()
        except FileNotFoundError:
            return False
        return True


class PrefixStore:
    """A part of another store: every key gets `prefix` and a slash in front."""

    def __init__(self, store: Store, prefix: str) -> None:
        self.underlying_store = store
        self._prefix = prefix + "/"

    @property
    def _place(self) -> Store:
        """The underlying store, for one use."""
        return self.underlying_store

    def set(self, key: str, value: bytes, /) -> None:
        """Store `value` under `key`."""
        self._place.set(self._prefix + key, value)

    def get(self, key: str, /) -> bytes:
        """Return the value of `key` as the underlying store does."""
        return self._place.get(self._prefix + key)

    def check(self, keys: list[str], /) -> bool:
        """Tell whether all `keys` are there."""
        return self._place.check([self._prefix + key for key in keys])

    def get_many(self, keys: Sequence[str], /) -> list[bytes | None]:
        """Return the values of `keys` that are there, None for the others."""
        return get_many(self._place, [self._prefix + key for key in keys])

    def add(self, key: str, amount: int, /) -> int:
        """Add to the number under `key` as the underlying store does."""
        return add(self._place, self._prefix + key, amount)

    def delete_key(self, key: str, /) -> bool:
        """Remove `key`; False where it was not there or the store cannot delete."""
        return delete_key(self.underlying_store, self._prefix + key)


class WatchedStore(PrefixStore):
    """A part of another store, for ranks that wait for each other there.

    `watch` runs before each use but deletion. It raises as soon as one of the ranks has died.
    """

    def __init__(self, store: Store, prefix: str, watch: Callable[[], None]) -> None:
        super().__init__(store, prefix)
        self._watch = watch

    @property
    def _place(self) -> Store:
        self._watch()
        return self.underlying_store


def delete_key(store: Store, key: str) -> bool:
    """Remove `key` from `store` if the store can; never raises, for it only tidies up."""
    try:
        return bool(getattr(store, "delete_key")(key))  # noqa: B009 - not part of the protocol
    except Exception:  # a store that is gone, or cannot delete, holds nothing of value any more
        return False


def add(store: Store, key: str, amount: int) -> int:
    """Add to the number under `key`, 0 at first, for all processes at once; return the sum.

    Raises:
        UsageError: the store has no `add`. It is not in the protocol: to find each other, ranks do
            without.
    """
    adds = getattr(store, "add", None)
    if adds is None:
        raise UsageError(
            f"store: {type(store).__name__} has no add(key, amount), which returns the sum; give "
            "a FileStore, a TcpStore, or one of torch's"
        )
    return int(adds(key, amount))


def get_many(store: Store, keys: Sequence[str]) -> list[bytes | None]:
    """Return the values of `keys`, None where there is none yet; by one request if it can be."""
    at_once = getattr(store, "get_many", None)  # not in the protocol
    if at_once is not None:
        found: list[bytes | None] = at_once(keys)
        return found
    return [bytes(store.get(key)) if store.check([key]) else None for key in keys]


def store_host(store: object) -> str | None:
    """Return the host that serves `store`, if any; looks through prefixes, torch's included."""
    while store is not None:
        host = getattr(store, "host", None)
        if isinstance(host, str) and host:
            return host
        store = getattr(store, "underlying_store", None)
    return None


def backoff(deadline: float, ranks: int = 1) -> Iterator[None]:
    """Yield at once, then after growing pauses, until `deadline` (monotonic).

    ranks: how many wait at one store. The pauses begin with 50 us for each of them, at most 1 ms,
    and end with 50 ms, or 0.5 ms for each where that is more.
    """
    longest = max(_POLL_SECONDS_MAX, ranks * _POLL_SECONDS_PER_RANK)
    pause = min(_FIRST_POLL_SECONDS_MAX, ranks * _FIRST_POLL_SECONDS_PER_RANK)
    while True:
        yield
        left = deadline - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, pause * random.uniform(0.7, 1.3)))
        pause = min(longest, pause * 1.5)


def wait_for(
    store: Store,
    keys_by_rank: Mapping[int, str],
    deadline: float,
    what: str,
    seen: Callable[[int, bytes], None] | None = None,
) -> dict[int, bytes]:
    """Wait until every rank's key is there and return the values by rank.

    `deadline` is in monotonic seconds; `what` completes the sentence "waiting for ... of 8 ranks";
    `seen(rank, value)` is called as the values come, and may raise.

    Raises:
        TimeoutError: the deadline passed; the message names the ranks that did not come.
        ConnectionError: the store itself failed.
    """
    start = time.monotonic()
    values: dict[int, bytes] = {}
    for _ in backoff(deadline, len(keys_by_rank)):
        left = [rank for rank in keys_by_rank if rank not in values]
        with store_errors(what):
            found = get_many(store, [keys_by_rank[rank] for rank in left])
        for rank, value in zip(left, found, strict=True):
            if value is None:
                continue
            values[rank] = value
            if seen is not None:
                seen(rank, value)
        if len(values) == len(keys_by_rank):
            return values
    missing = [rank for rank in keys_by_rank if rank not in values]
    raise Timeout(
        f"{name_ranks(missing)} never came: waited {time.monotonic() - start:.1f} s for {what} of "
        f"{len(keys_by_rank)} "
        "ranks. See whether those processes started and what they printed, and whether they were "
        "given the same store, "
        "world size and generation; a larger timeout helps only if they are slow"
    )


@contextlib.contextmanager
def store_errors(what: str) -> Iterator[None]:
    """Turn what a foreign store raises (torch: RuntimeError, DistError) into ConnectionError."""
    try:
        yield
    except (TimeoutError, ConnectionError, UsageError, AbortedError):
        raise
    except (RuntimeError, OSError) as error:
        raise PeerError(
            f"the store failed while waiting for {what}: {error}; the process that serves it has "
            "probably died"
        ) from error


def pause_between_looks(ranks: int) -> float:
    """Return the seconds between two looks at what others may have written, if so many ranks look.

    One server answers all of them.
    """
    return max(_LOOK_SECONDS, ranks * _LOOK_SECONDS / 256)


def name_ranks(ranks: list[int]) -> str:
    """Return "rank 3" or "ranks 1, 2, 5"; long lists are cut."""
    shown = ", ".join(map(str, ranks[:16])) + (
        f" and {len(ranks) - 16} more" if len(ranks) > 16 else ""
    )
    return f"rank{'s' if len(ranks) != 1 else ''} {shown}"
