"""What the ranks tell each other through the store: one card each, gathered by rank 0 into a table
that all read.

Rank 0 compares the cards as they come, and publishes an error in place of the table: all ranks
raise the same one. Values are JSON under an HMAC of the job's secret, so a foreign or damaged entry
is an error too, never data.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from allreduce._handshake import Session
from allreduce._nodes import NodeIdentity
from allreduce._store import Store, delete_key, name_ranks, store_errors, wait_for
from allreduce.errors import PeerError, Timeout, UsageError

FORMAT = 1
_MAC_BYTES = 32
_LINGER_SECONDS = 2.0
_ERRORS: dict[str, type[Exception]] = {
    "usage": UsageError,
    "timeout": Timeout,
    "peer": PeerError,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """Who a rank is and what it was asked for; rank 0 chooses `group_id` and `secret` (hex)."""

    world_size: int
    lanes: int
    nodes: int | list[str] | None
    authenticated: bool
    boot: str
    host: str
    network: str
    pid: int
    unix_name: str
    tuning: str = ""  # digest of the tuning file; "" without one
    failure: str = ""  # why this rank cannot go on
    group_id: int = 0
    secret: str = ""

    @property
    def identity(self) -> NodeIdentity:
        """Return the node of this rank."""
        return NodeIdentity(boot=self.boot, host=self.host, network=self.network)

    def pack(self) -> bytes:
        """Return the card as JSON."""
        return json.dumps({"format": FORMAT, **asdict(self)}).encode()

    @classmethod
    def unpack(cls, rank: int, data: bytes) -> Card:
        """Return the card of `rank`; ValueError if it is not of this version."""
        try:
            fields = json.loads(data)
            if fields.pop("format") != FORMAT:
                raise ValueError("another format")
            return cls(**fields)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"rank {rank} published a card that cannot be read ({error}); install one version "
                "of this package everywhere"
            ) from error

    def check_against(self, rank: int, first: Card) -> None:
        """Raise ValueError, with both values, where `rank` was asked for other than rank 0."""
        if self.authenticated != first.authenticated:
            without = rank if first.authenticated else 0
            raise UsageError(
                f"rank {without} has no job secret but rank {rank - without} has; "
                "set ALLREDUCE_SECRET_FILE or ALLREDUCE_SECRET on all ranks or on none"
            )
        if self.failure:
            raise UsageError(f"rank {rank}: {self.failure}")
        if self.tuning != first.tuning:
            raise UsageError(
                f"rank {rank} has another tuning file than rank 0, or only one of them has one; "
                "give all ranks the same (tuning, ALLREDUCE_TUNING)"
            )
        for name in ("world_size", "lanes", "nodes"):
            mine, theirs = getattr(self, name), getattr(first, name)
            if mine != theirs:
                raise UsageError(
                    f"{name} is {theirs} on rank 0 but {mine} on rank {rank}; give all ranks the "
                    "same"
                )


class Board:
    """The part of a store that belongs to one generation of a group, as one rank sees it."""

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
        self._seal_key = Session.derive(secret or b"no secret was given", 0, generation).key
        self._deadline = deadline
        self._written: list[str] = []

    def gather(
        self,
        what: str,
        value: bytes,
        accept: Callable[[int, bytes], None],
        judge: Callable[[list[bytes]], None] = lambda values: None,
    ) -> list[bytes]:
        """Return the values of all ranks in rank order, or raise the error of rank 0.

        On rank 0, `accept(rank, value)` runs as the values come and `judge(values)` when all are
        there; they raise UsageError or PeerError for what does not fit.
        """
        with store_errors(what):
            taken = self._store.check([self._key(what, self._rank)])
        if taken:
            raise UsageError(
                f"the store already has {what} of rank {self._rank} for generation "
                f"{self._generation}: another process has the same rank, or a run before this one "
                "stopped half way; use an empty store or a higher generation"
            )
        self._write(self._key(what, self._rank), value)
        if self._rank == 0:
            return self._collect(what, accept, judge)
        return self._await_table(what)

    def clean(self) -> None:
        """Remove what this rank wrote; for when all ranks have read it."""
        for key in self._written:
            delete_key(self._store, key)
        self._written.clear()

    def _collect(
        self,
        what: str,
        accept: Callable[[int, bytes], None],
        judge: Callable[[list[bytes]], None],
    ) -> list[bytes]:
        keys = {rank: self._key(what, rank) for rank in range(self._world_size)}
        values: dict[int, bytes] = {}

        def seen(rank: int, sealed: bytes) -> None:
            values[rank] = self._open(keys[rank], f"rank {rank}", sealed)
            accept(rank, values[rank])

        try:
            wait_for(self._store, keys, self._deadline, what, seen)
            table = [values[rank] for rank in range(self._world_size)]
            judge(table)
        except (ValueError, TimeoutError, ConnectionError) as error:
            kind = next((name for name, cls in _ERRORS.items() if isinstance(error, cls)), "peer")
            with contextlib.suppress(ConnectionError):  # the store itself may be what failed
                failure = {"error": kind, "text": str(error)}
                self._write(self._table(what), json.dumps(failure).encode())
                self._linger(what, list(values) if kind == "timeout" else list(keys))
            raise
        texts = [value.decode() for value in table]
        self._write(self._table(what), json.dumps({"values": texts}).encode())
        return table

    def _linger(self, what: str, ranks: list[int]) -> None:
        """Wait a moment until `ranks` have read the error: the store may end with this process."""
        keys = {rank: self._key(what, rank) + "/told" for rank in ranks if rank != 0}
        with contextlib.suppress(TimeoutError):
            wait_for(self._store, keys, time.monotonic() + _LINGER_SECONDS, what)

    def _await_table(self, what: str) -> list[bytes]:
        key = self._table(what)
        try:
            sealed = wait_for(self._store, {0: key}, self._deadline, what)[0]
        except TimeoutError:
            self._name_missing(what)
            raise
        try:
            table = json.loads(self._open(key, "rank 0", sealed))
        except ValueError:
            self._write(self._key(what, self._rank) + "/told", b"")
            raise
        if "error" in table:
            self._write(self._key(what, self._rank) + "/told", b"")
            raise _ERRORS.get(table["error"], PeerError)(table["text"])
        values = [str(value).encode() for value in table["values"]]
        if len(values) != self._world_size:
            raise UsageError(
                f"world_size is {len(values)} on rank 0 but {self._world_size} on rank "
                f"{self._rank}; give all ranks the same"
            )
        return values

    def _name_missing(self, what: str) -> None:
        """Raise Timeout for the ranks that did not come, where there are any."""
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
        return f"mesh/{self._generation}/{what.replace(' ', '-')}/{rank}"

    def _table(self, what: str) -> str:
        return f"mesh/{self._generation}/{what.replace(' ', '-')}/table"

    def _write(self, key: str, body: bytes) -> None:
        self._written.append(key)
        with store_errors(key):
            self._store.set(key, self._seal(key, body) + body)

    def _seal(self, key: str, body: bytes) -> bytes:
        return hmac.digest(self._seal_key, key.encode() + b"\0" + body, hashlib.sha256)

    def _open(self, key: str, writer: str, sealed: bytes) -> bytes:
        seal, body = sealed[:_MAC_BYTES], sealed[_MAC_BYTES:]
        if not hmac.compare_digest(seal, self._seal(key, body)):
            raise UsageError(
                f"what {writer} wrote into the store does not carry this job's seal: its "
                "ALLREDUCE_SECRET_FILE or "
                "ALLREDUCE_SECRET differs, or the store is shared with another job"
            )
        return body
