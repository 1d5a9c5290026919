"""Communicators made from another one: of a part of its ranks, of those that are alive, or with
further processes.

Those that are alive, and those that come, agree in the store that the first one was made with; one
number of the store's decides where two could.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from allreduce.communicator.collective_base import seconds
from allreduce.communicator.scatter_and_gather import PartCollectives
from allreduce.errors import AbortedError, PeerError, Timeout, UsageError
from allreduce.rendezvous.connect import Connections
from allreduce.rendezvous.handshake import job_secret
from allreduce.rendezvous.seal import Seal
from allreduce.rendezvous.store import (
    PrefixStore,
    Store,
    add,
    backoff,
    delete_key,
    get_many,
    name_ranks,
    store_errors,
)
from allreduce.tuning import Tuning
from allreduce.tuning.option import resolve_tuning

if TYPE_CHECKING:
    from allreduce.communicator.communicator import Communicator

_ASKED = "grow/asked"  # how many processes have asked to join
_TAKEN_IN, _TOO_FEW, _FAILED = range(3)  # what rank 0 says of newcomers
_GRACE = 10.0  # seconds for a rank that has the right to say who is here


class Regrouping(PartCollectives):
    """The part of a communicator that makes others from it."""

    node_of_rank: tuple[int, ...]
    tuning: Tuning | None
    _connections: Connections
    _options: dict[str, Any]
    _splits: int
    _grown: int
    _closed: bool
    _store: Store

    def close(self) -> None:
        """Leave the group: the communicator's own."""
        raise NotImplementedError

    def split(self, color: int | None, key: int = 0) -> Communicator | None:
        """Make one new communicator for each color, its ranks ordered by (key, rank).

        Every rank calls it; a rank that passes None gets None. As MPI_Comm_split.
        """
        mine = np.array([-1 if color is None else color, key], np.int64)
        if color is not None and color < 0:
            raise UsageError(f"color={color}: must be 0 or more, or None")
        rows = self.allgather(mine).reshape(self.world_size, 2)
        self._splits += 1
        if color is None:
            return None
        members = [int(r) for r in np.lexsort((np.arange(self.world_size), rows[:, 1]))]
        members = [r for r in members if rows[r, 0] == color]
        store = PrefixStore(self._store, f"split/{self._name}/{self._splits}/{color}/")
        return self._make(store, members, [str(self.node_of_rank[r]) for r in members])

    def shrink(self, *, timeout: float | None = None) -> Communicator:
        """Make a new communicator of the ranks that are alive, and close this one.

        Every rank that is alive calls it, mostly after a `PeerError`, and has not closed this one:
        whoever has is taken for gone. The ranks keep their order. They agree in the store of this
        communicator, which must outlive those that died: a directory (FileStore), or a server that
        is no rank. Arrays of calls that failed may hold anything. As MPIX_Comm_shrink of MPI's
        ULFM.

        Args:
            timeout: seconds to wait for ranks that are neither here nor known to have gone; then
                the others go on without them. None: the communicator's.

        Raises:
            AbortedError: the others went on without this rank; or this communicator is closed.
            PeerError, Timeout: the store is gone; or ranks agreed and did not meet.
            UsageError: the store has no `add`; or this is a forked child.
        """
        self._group.gone_ranks()  # a child is refused before it writes
        if self._closed:
            raise AbortedError("shrink: this communicator is closed; the others took it for gone")
        wait = seconds(timeout) if timeout is not None else self._options["timeout"]
        for attempt in count(1):
            place = PrefixStore(self._store, f"shrink/{self._name}/{attempt}")
            members = self._agree_who_is_here(place, time.monotonic() + wait)
            if self.rank not in members:
                self.close()
                raise AbortedError(
                    f"rank {self.rank} came too late: {name_ranks(members)} went on without it; "
                    "join them by Communicator.join"
                )
            nodes = [str(self.node_of_rank[r]) for r in members]
            named = self._connections.named_nodes
            try:
                made = self._make(PrefixStore(place, "group"), members, nodes if named else None)
            except (PeerError, Timeout):
                if not {*members} & {*self._group.gone_ranks()}:
                    raise
                continue  # one has died since they agreed
            made._store = self._store
            break
        self.close()
        return made

    def grow(self, newcomers: int = 1, *, timeout: float | None = None) -> Communicator:
        """Make a new communicator with `newcomers` more processes, and close this one.

        Every rank calls it, and each newcomer `Communicator.join` with the same store. The ranks
        stay what they are; newcomers follow in the order in which they asked. If it fails, this
        communicator is as before.

        Args:
            timeout: seconds to wait for newcomers. None: the communicator's.

        Raises:
            Timeout: too few processes asked to join; or one of them died meanwhile.
            PeerError: the store is gone.
            UsageError: the store has no `add`; or this is a forked child.
        """
        self._group.gone_ranks()  # a child is refused before it writes
        if newcomers < 1:
            raise UsageError(f"newcomers={newcomers}: must be 1 or more")
        wait = seconds(timeout) if timeout is not None else self._options["timeout"]
        with store_errors("grow"):
            add(self._store, _ASKED, 0)  # every rank finds out whether the store can
        self._grown += 1
        name = f"grow/{self._name}/{self._grown}"
        said, failure = _TAKEN_IN, None
        try:
            if self.rank == 0 and not self._take_in(name, newcomers, wait):
                said = _TOO_FEW
        except Exception as error:  # the others must not wait for it
            said, failure = _FAILED, error
        says = self.allgather(np.array([said]), timeout=wait + self._options["timeout"])[0]
        if failure:
            raise failure
        if says == _TOO_FEW:
            raise Timeout(
                f"fewer than {newcomers} processes asked to join within {wait:g} s; each calls "
                "Communicator.join with the store of this communicator"
            )
        if says == _FAILED:
            raise PeerError("rank 0 could take nobody in: see its error, or its output", 0)
        grown = _enter(type(self), self._store, name, self.rank)
        self.close()
        return grown

    @classmethod
    def join(cls, store: Store, *, node: int | None = None, timeout: float = 300.0) -> Communicator:
        """Become a rank of a communicator that grows, with its options: see `grow`.

        Args:
            store: the one that the communicator was made with.
            node: number of its node, where nodes are simulated; None: one of its own.
            timeout: seconds to wait until the communicator grows.

        Raises:
            Timeout: it did not grow, or not so much.
            PeerError, UsageError: as `from_store`; the store has no `add`.
        """
        with store_errors("join"):
            number = add(store, _ASKED, 1)
            asked, answer = f"{_ASKED}/{number}", f"grow/answer/{number}"
            store.set(asked, _pack(asked, {"node": node}))
        for _ in backoff(time.monotonic() + timeout):
            with store_errors("join"):
                found = get_many(store, [answer])[0]
            if found is not None:
                break
        else:
            delete_key(store, asked)
            raise Timeout(f"nobody let this process join within {timeout:g} s; all ranks call grow")
        told = _parse(answer, found)
        delete_key(store, answer)
        return _enter(cls, store, str(told["name"]), int(told["rank"]))

    @property
    def _name(self) -> str:
        """What keys of this communicator begin with in its store."""
        return f"{self._connections.group_id:08x}.{self._connections.generation}"

    def _make(self, store: Store, members: Sequence[int], nodes: list[str] | None) -> Communicator:
        """The communicator of `members` of this one, with its options."""
        kind: Any = type(self)
        made: Communicator = kind.from_store(
            store,
            members.index(self.rank),
            len(members),
            nodes=nodes,
            **{**self._options, "tuning": self.tuning},
        )
        return made

    def _agree_who_is_here(self, place: Store, deadline: float) -> list[int]:
        """Return who is here, ascending: as the one rank found it that took the right to say so."""
        keys = [f"here/{rank}" for rank in range(self.world_size)]
        may_say = True
        with store_errors("shrink"):
            place.set(keys[self.rank], b"")
        for _ in backoff(deadline + _GRACE, self.world_size):
            with store_errors("shrink"):
                said, *found = get_many(place, ["members", *keys])
                if said is not None:
                    return [int(rank) for rank in _parse("members", said)["ranks"]]
                here = [rank for rank, value in enumerate(found) if value is not None]
                # Who comes is here before it closes this communicator.
                complete = not {*range(self.world_size)} - {*here} - {*self._group.gone_ranks()}
                if may_say and (complete or time.monotonic() >= deadline):
                    may_say = add(place, "said", 1) == 1
                    if may_say:
                        place.set("members", _pack("members", {"ranks": here}))
        raise Timeout(
            f"rank {self.rank}: the rank that was to say who is alive has not; it has probably "
            "died. Make a new communicator"
        )

    def _take_in(self, name: str, newcomers: int, wait: float) -> bool:
        """On rank 0: choose newcomers, write the plan of the new communicator. False: too few."""
        with store_errors("grow"):
            asked = _claim(self._store, newcomers, time.monotonic() + wait)
            if not asked:
                return False
            ours = [str(node) for node in self.node_of_rank]
            theirs = [f"joined {n}" if node is None else str(node) for n, node in asked.items()]
            plan = {
                "world_size": self.world_size + newcomers,
                "nodes": ours + theirs if self._connections.named_nodes else None,
                "options": {k: v for k, v in self._options.items() if k != "tuning"},
            }
            self._store.set(f"{name}/plan", _pack(f"{name}/plan", plan))
            for i, number in enumerate(asked):
                key = f"grow/answer/{number}"
                answer = {"name": name, "rank": self.world_size + i}
                self._store.set(key, _pack(key, answer))
        return True


def _claim(store: Store, newcomers: int, deadline: float) -> dict[int, int | None]:
    """Return the nodes of so many who ask to join, by their numbers; none if they are too few."""
    claimed: dict[int, bytes] = {}
    for _ in backoff(deadline):
        numbers = range(1, add(store, _ASKED, 0) + 1)
        found = get_many(store, [f"{_ASKED}/{number}" for number in numbers])
        for number, asked in zip(numbers, found, strict=True):
            if asked is None or len(claimed) == newcomers:
                continue
            if delete_key(store, f"{_ASKED}/{number}"):  # nobody else has
                claimed[number] = asked
        if len(claimed) == newcomers:
            return {n: _parse(f"{_ASKED}/{n}", asked)["node"] for n, asked in claimed.items()}
    for number, asked in claimed.items():
        store.set(f"{_ASKED}/{number}", asked)
    return {}


def _enter(kind: type[Any], store: Store, name: str, rank: int) -> Communicator:
    """Become this rank of the communicator of which the plan is in the store."""
    with store_errors("grow"):
        plan = _parse(f"{name}/plan", store.get(f"{name}/plan"))
    made: Communicator = kind.from_store(
        PrefixStore(store, name),
        rank,
        plan["world_size"],
        nodes=plan["nodes"],
        tuning=resolve_tuning(None, os.environ).tuning,  # whose file need not have this layout
        **plan["options"],
    )
    made._store = store
    return made


def _pack(key: str, body: dict[str, Any]) -> bytes:
    return Seal(job_secret(), 0).close(key, json.dumps(body, default=int).encode())  # of NumPy, too


def _parse(key: str, sealed: bytes) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(Seal(job_secret(), 0).open(key, "a rank", bytes(sealed)))
    return body
