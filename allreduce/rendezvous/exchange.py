"""What the ranks tell each other through the store: each writes a value, rank 0 gathers them into a
table, and all read the table.

Rank 0 compares the values as they come, and publishes an error in place of the table: all ranks
raise the same one. Values are JSON under an HMAC of the job's secret, so a foreign or damaged entry
is an error too, never data.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import time
from collections.abc import Callable

from allreduce.errors import PeerError, Timeout, UsageError
from allreduce.rendezvous.seal import Seal
from allreduce.rendezvous.store import (
    Store,
    backoff,
    delete_key,
    get_many,
    name_ranks,
    pause_between_looks,
    store_errors,
    store_host,
    wait_for,
)

_LINGER_SECONDS = 2.0
_ERRORS: dict[str, type[Exception]] = {
    "usage": UsageError,
    "timeout": Timeout,
    "peer": PeerError,
}


class StoreExchange:
    """The part of a store that belongs to one generation of a group, as one rank sees it.

    Rank 0 names each attempt to make the group by chance, and calls the name out under the one key
    that all ranks know. The others answer under that name, and follow if another is called. A table
    counts for a rank only if it holds what this rank wrote, an error only if it is addressed to
    that. So what an earlier attempt left in the store is never taken for an answer.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        world_size: int,
        generation: int,
        secret: bytes | None,
        deadline: float,
    ) -> None:
        self._store = store
        self._rank = rank
        self._world_size = world_size
        self._generation = generation
        self._seal = Seal(secret, generation)
        self._deadline = deadline
        self._written: list[str] = []
        self._call = f"mesh/{generation}/call"
        self._attempt = ""  # its name; another rank than 0 keeps it once a table has come
        self._settled = False
        self._taken = False  # what this rank would write is there already, from elsewhere
        self._made = False  # the group was made, and this rank had no part in it
        self._of_others = ""  # an error of this attempt that rank 0 told those who had come

    def gather(
        self,
        what: str,
        value: bytes,
        accept: Callable[[int, bytes], object],
        judge: Callable[[list[bytes]], None] = lambda values: None,
    ) -> list[bytes]:
        """Return the values of all ranks in rank order, or raise the error of rank 0.

        On rank 0, `accept(rank, value)` runs as the values come and `judge(values)` when all are
        there; they raise UsageError or PeerError for what does not fit.
        """
        if self._rank != 0:
            return self._answer(what, value)
        if not self._attempt:
            self._attempt = secrets.token_hex(16)
            self._write(self._call, self._attempt.encode())
        self._write(self._key(what, 0), value)
        return self._collect(what, accept, judge)

    def publish_failure(self, error: Exception) -> Exception:
        """Tell all ranks why this one cannot go on. Return the error to raise: that of the rank
        which told first.
        """
        rank = getattr(error, "rank", -1)
        body = {"kind": _kind_of(error), "text": str(error), "by": self._rank}
        body["rank"] = rank if rank >= 0 else self._rank
        with contextlib.suppress(Exception):  # whatever a store raises: `error` counts
            first = self._published_failure()
            if first is None:
                self._write(self._failure, json.dumps(body).encode())
            if self._rank == 0 and store_host(self._store):  # which may end with this process
                time.sleep(2 * pause_between_looks(self._world_size))
            if first and isinstance(error, TimeoutError):  # it says what this rank has waited for
                first.args = (f"{first}; on this rank: {error}", *first.args[1:])
            return first or error
        return error

    def raise_failure(self) -> None:
        """Raise what another rank has published by `publish_failure`, if one has.

        Raises:
            PeerError: the store has failed.
        """
        if failure := self._published_failure():
            raise failure

    def _published_failure(self) -> Exception | None:
        with store_errors("failures of other ranks"):
            sealed = get_many(self._store, [self._failure])[0]
        if sealed is None:
            return None
        failure = json.loads(self._seal.open(self._failure, "a rank", sealed))
        text = f"start-up failed on rank {failure['by']}: {failure['text']}"
        kind = _ERRORS[failure["kind"]]
        return PeerError(text, failure["rank"]) if kind is PeerError else kind(text)

    @property
    def _failure(self) -> str:
        return f"mesh/{self._generation}/{self._attempt}/failure"

    def clean(self) -> None:
        """Remove what this rank wrote; for when all ranks have read it. Never raises: the group is
        there, and needs the store no more.

        The key of the calls stays, without a name: a rank that looks for the next call may be about
        to read it, and of a key that is gone a store may wait for long.
        """
        for key in set(self._written) - {self._call}:
            delete_key(self._store, key)
        if self._rank == 0:
            with contextlib.suppress(Exception):  # whatever a store raises
                self._write(self._call, b"")
        self._written.clear()

    def _collect(
        self,
        what: str,
        accept: Callable[[int, bytes], object],
        judge: Callable[[list[bytes]], None],
    ) -> list[bytes]:
        keys = {rank: self._key(what, rank) for rank in range(self._world_size)}
        values: dict[int, bytes] = {}

        def seen(rank: int, sealed: bytes) -> None:
            values[rank] = self._seal.open(keys[rank], f"rank {rank}", sealed)
            accept(rank, values[rank])

        try:
            try:
                wait_for(self._store, keys, self._deadline, what, seen)
            except TimeoutError:
                self._check_call(what)
                raise
            table = [values[rank] for rank in range(self._world_size)]
            judge(table)
        except (ValueError, TimeoutError, ConnectionError) as error:
            kind = _kind_of(error)
            wanted = list(values) if kind == "timeout" else list(keys)
            with contextlib.suppress(TimeoutError, ConnectionError):  # the store may have failed
                self._tell_all(what, {"error": kind, "text": str(error)}, wanted)
            raise
        texts = [value.decode() for value in table]
        self._write(self._table(what), json.dumps({"values": texts}).encode())
        return table

    def _check_call(self, what: str) -> None:
        """Raise UsageError where another process has called after this one."""
        with store_errors(what):
            called = bytes(self._store.get(self._call))[Seal.BYTES :]
        if called != self._attempt.encode():
            raise UsageError("another process has the same rank 0, and the others follow it")

    def _tell_all(self, what: str, failure: dict[str, str], ranks: list[int]) -> None:
        """Publish an error, addressed to what `ranks` wrote, until all of them have read it.

        Only for a moment; but the store may end with this process.
        """
        addressed: dict[int, str] = {}
        left = {rank for rank in ranks if rank != 0}
        for _ in backoff(time.monotonic() + _LINGER_SECONDS):
            with store_errors(what):
                came = [r for r in left - set(addressed) if self._store.check([self._key(what, r)])]
                for rank in came:
                    sealed = bytes(self._store.get(self._key(what, rank)))
                    addressed[rank] = _digest(sealed[Seal.BYTES :])
                left = {r for r in left if not self._store.check([self._key(what, r) + "/told"])}
            if came:
                body = json.dumps({**failure, "to": addressed}).encode()
                self._write(self._table(what), body)
            if not left:
                return

    def _answer(self, what: str, value: bytes) -> list[bytes]:
        """What a rank other than 0 does: write its value, and wait for the table."""
        for _ in backoff(self._deadline, self._world_size):
            if self._follow(what, value) and (values := self._read_table(what, value)):
                self._settled = True
                return values
        if self._of_others:
            raise Timeout(
                f"rank 0 had given up before this rank came, or did so in an earlier attempt: "
                f"{self._of_others}"
            )
        self._name_missing(what)
        raise Timeout(
            f"rank 0 never came: no table of every {what} in the store by the deadline; see "
            "whether its process started and what it printed, and whether it was given the same "
            "store and generation"
        )

    def _follow(self, what: str, value: bytes) -> bool:
        """Write the value under the attempt that is called now; tell whether there is one."""
        name = self._attempt
        sealed = b""
        if not self._settled:
            called = self._get(what, self._call)
            if called is None:
                return False
            sealed = called
            name = sealed[Seal.BYTES :].decode("ascii", "replace")
            self._made = not name
            if not name:
                return False
        key = f"mesh/{self._generation}/{name}/{what.replace(' ', '-')}/{self._rank}"
        if key in self._written:
            return True
        with store_errors(what):
            self._taken = self._store.check([key])
        if self._taken:
            return False
        self._attempt, self._of_others = name, ""
        self._write(key, value)
        if sealed:
            self._read(what, self._call, sealed)
        return True

    def _read_table(self, what: str, mine: bytes) -> list[bytes] | None:
        """Return the values of all ranks, or raise rank 0's error; None: not for this rank."""
        key = self._table(what)
        sealed = self._get(what, key)
        if sealed is None:
            return None
        table = json.loads(self._read(what, key, sealed))
        if "error" in table:
            if table["to"].get(str(self._rank)) != _digest(mine):
                self._of_others = str(table["text"])
                return None
            self._write(self._key(what, self._rank) + "/told", b"")
            raise _ERRORS.get(table["error"], PeerError)(table["text"])
        values = [str(value).encode() for value in table["values"]]
        if len(values) != self._world_size:
            raise UsageError(
                f"world_size is {len(values)} on rank 0 but {self._world_size} on rank "
                f"{self._rank}; give all ranks the same"
            )
        self._taken = values[self._rank] != mine
        return None if self._taken else values

    def _get(self, what: str, key: str) -> bytes | None:
        with store_errors(what):
            return get_many(self._store, [key])[0]

    def _read(self, what: str, key: str, sealed: bytes) -> bytes:
        """Open what rank 0 wrote; it waits to hear that somebody cannot."""
        try:
            return self._seal.open(key, "rank 0", sealed)
        except ValueError:
            self._write(self._key(what, self._rank) + "/told", b"")
            raise

    def _name_missing(self, what: str) -> None:
        """Raise for the ranks that did not come, or came twice, where there are any."""
        if self._made:
            raise Timeout(
                "rank 0 has not come again since a group was made in this store without this "
                f"process; or another process has the same rank {self._rank}, and is in that group"
            )
        if self._taken:
            raise UsageError(
                f"another process has the same rank {self._rank} and has answered rank 0; or a run "
                "before this one stopped half way, and its rank 0 has not come again"
            )
        if not self._attempt:
            return
        with store_errors(what):
            ranks = range(self._world_size)
            missing = [r for r in ranks if not self._store.check([self._key(what, r)])]
        if missing:
            raise Timeout(
                f"{name_ranks(missing)} never came: no {what} in the store by the deadline; see "
                "whether those processes started and what they printed, and whether they were "
                "given the same store and generation"
            )

    def _key(self, what: str, rank: int) -> str:
        return f"mesh/{self._generation}/{self._attempt}/{what.replace(' ', '-')}/{rank}"

    def _table(self, what: str) -> str:
        return f"mesh/{self._generation}/{self._attempt}/{what.replace(' ', '-')}/table"

    def _write(self, key: str, body: bytes) -> None:
        self._written.append(key)
        with store_errors(key):
            self._store.set(key, self._seal.close(key, body))


def _kind_of(error: Exception) -> str:
    return next((name for name, kind in _ERRORS.items() if isinstance(error, kind)), "peer")


def _digest(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()
