"""Communicators made from another one: of a part of its ranks, of those that are alive, or with
further processes.

Those that are alive, and those that come, agree in the store that the first one was made with; one
number of the store's decides where two could.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from allreduce.communicator.collective_base import seconds
from allreduce.communicator.joining import (
    ASKED,
    GRACE,
    Claims,
    ask_to_join,
    enter,
    pack,
    parse,
)
from allreduce.communicator.scatter_and_gather import PartCollectives
from allreduce.errors import AbortedError, PeerError, Timeout, UsageError
from allreduce.rendezvous.connect import Connections
from allreduce.rendezvous.store import (
    PrefixStore,
    Store,
    WatchedStore,
    add,
    backoff,
    get_many,
    name_ranks,
    store_errors,
)
from allreduce.tuning import Tuning

if TYPE_CHECKING:
    from allreduce.communicator.communicator import Communicator

_TAKEN_IN, _TOO_FEW, _FAILED = range(3)  # what rank 0 says of newcomers


class Regrouping(PartCollectives):
    """The part of a communicator that makes others from it."""

    node_of_rank: tuple[int, ...]
    tuning: Tuning | None
    _connections: Connections
    _options: dict[str, Any]
    _splits: int
    _grown: int
    _closed: bool
    _attempt: int  # to shrink
    _store: Store

    def close(self) -> None:
        """Leave the group: the communicator's own."""
        raise NotImplementedError

    def barrier(self) -> None:
        """Wait for all ranks: the communicator's own."""
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
        return self._make(store, members, named_nodes=True)

    def shrink(self, *, timeout: float | None = None) -> Communicator:
        """Make a new communicator of the ranks that are alive, and close this one.

        Every rank that is alive calls it, mostly after a `PeerError`. A rank that has closed this
        communicator counts as dead. The ranks keep their order. They agree in the store of this
        communicator, which must outlive those that died: a directory (FileStore), or a server that
        is no rank. Arrays of calls that failed may hold anything. As MPIX_Comm_shrink of MPI's
        ULFM.

        Args:
            timeout: seconds to wait for ranks that are not known to be dead and have not called
                `shrink`; then the others go on without them. None: the communicator's.

        Raises:
            AbortedError: the others went on without this rank; or this communicator is closed.
            PeerError, Timeout: the store failed; or the ranks agreed and could not connect.
            UsageError: the store has no `add`; or this is a forked child.
        """
        self._group.gone_ranks()  # a child is refused before it writes
        if self._closed:
            raise AbortedError("shrink: this communicator is closed; the others took it for gone")
        wait = seconds(timeout) if timeout is not None else self._options["timeout"]
        made = None
        while made is None:
            place = PrefixStore(self._store, f"shrink/{self._name}/{self._attempt}")
            members = self._agree_who_is_here(place, time.monotonic() + wait)
            if members is not None:
                made = self._make_of(place, members)
            self._attempt += 1
        following = PrefixStore(self._store, f"shrink/{self._name}/{self._attempt}")
        with store_errors("shrink"):
            place.set("made", b"")  # before anybody can take this rank for gone
            if following.check(["said"]):  # they have, while it stood still
                made.close()
                self._refuse_late("the others")
        self.close()
        return made

    def grow(self, newcomers: int = 1, *, timeout: float | None = None) -> Communicator:
        """Make a new communicator with `newcomers` more processes, and close this one.

        Every rank calls it, and each newcomer `Communicator.join` with the same store. The ranks
        stay what they are; newcomers follow. It takes over the options but `tuning`. If too few
        come, or they do not connect, this communicator is as before.

        Args:
            timeout: seconds to wait for newcomers. None: the communicator's.

        Raises:
            Timeout: too few processes asked to join; or a newcomer died meanwhile.
            PeerError: the store failed; or a rank of this communicator died: it has failed, too.
            UsageError: the store has no `add`; or this is a forked child.
        """
        self._group.gone_ranks()  # a child is refused before it writes
        if newcomers < 1:
            raise UsageError(f"newcomers={newcomers}: must be 1 or more")
        wait = seconds(timeout) if timeout is not None else self._options["timeout"]
        with store_errors("grow"):
            add(self._store, ASKED, 0)  # every rank finds out whether the store can
        self.barrier()  # nobody is taken in where this communicator has failed
        self._grown += 1
        name = f"grow/{self._name}/{self._grown}"
        says, failure, claimed = _TAKEN_IN, None, Claims(self._store)
        try:
            if self.rank == 0 and not self._plan(name, claimed, newcomers, wait):
                says = _TOO_FEW
        except Exception as error:  # the others must not wait for it
            says, failure = _FAILED, error
        try:
            says = int(self.allgather(np.array([says]), timeout=wait + self._options["timeout"])[0])
            if says == _TAKEN_IN:
                claimed.answer(name, self.world_size)
        except BaseException:
            claimed.give_back()
            raise
        if says != _TAKEN_IN:
            claimed.give_back()
        if failure:
            raise failure
        if says == _TOO_FEW:
            raise Timeout(
                f"fewer than {newcomers} processes asked to join within {wait:g} s; each calls "
                "Communicator.join with the store of this communicator"
            )
        if says == _FAILED:
            raise PeerError("rank 0 could take nobody in: see its error, or its output", -1)
        grown = enter(type(self), self._store, name, self.rank)
        with store_errors("grow"):
            self._store.set(f"{name}/made", b"")  # as shrink does
        self.close()
        return grown

    @classmethod
    def join(cls, store: Store, *, node: int | None = None, timeout: float = 300.0) -> Communicator:
        """Become a rank of a communicator that grows, with its options but `tuning`: see `grow`.

        Args:
            store: the one that the communicator was made with.
            node: for simulated nodes alone: the number of its node; None: a new one.
            timeout: seconds to wait until the communicator grows.

        Raises:
            Timeout: no `grow` took this process in.
            PeerError, UsageError: as `from_store`; the store has no `add`.
        """
        with store_errors("join"):
            name, rank = ask_to_join(store, node, timeout)
        return enter(cls, store, name, rank)

    @property
    def _name(self) -> str:
        """What keys of this communicator begin with in its store."""
        return f"{self._connections.group_id:08x}.{self._connections.generation}"

    def _make(self, store: Store, members: Sequence[int], named_nodes: bool) -> Communicator:
        """The communicator of `members` of this one, with its options; on its nodes, if named."""
        nodes = [str(self.node_of_rank[r]) for r in members] if named_nodes else None
        kind: Any = type(self)
        made: Communicator = kind.from_store(
            store,
            members.index(self.rank),
            len(members),
            nodes=nodes,
            **{**self._options, "tuning": self.tuning},
        )
        return made

    def _agree_who_is_here(self, place: Store, deadline: float) -> list[int] | None:
        """Return who is here, ascending: as the one rank found it that took the right to say so.

        None if that one has died: then it is to be tried once more. What is known of those who
        have gone is asked before the store is: so what they wrote last is seen.
        """
        ranks = range(self.world_size)
        before = [f"shrink/{self._name}/{self._attempt - 1}/made"]
        before += [f"grow/{self._name}/{self._grown}/made"]
        here_keys = [f"here/{rank}" for rank in ranks]
        says_keys = [f"says/{rank}" for rank in ranks]  # who may say so, until it knows better
        keys = ["members", "said", *here_keys, *says_keys]
        asked = False
        with store_errors("shrink"):
            place.set(here_keys[self.rank], b"")
        for _ in backoff(deadline + GRACE, self.world_size):
            gone = {*self._group.gone_ranks()}
            with store_errors("shrink"):
                members, said, *values = get_many(place, keys)
                if any(self._store.check([key]) for key in before):
                    self._refuse_late("the others")
                if members is not None:
                    return [int(rank) for rank in parse("members", members)["ranks"]]
                here = {rank for rank in ranks if values[rank] is not None}
                may_say = {rank for rank in ranks if values[self.world_size + rank] == b"perhaps"}
                if said is not None and may_say and may_say <= gone:
                    return None
                if asked or ({*ranks} - here - gone and time.monotonic() < deadline):
                    continue
                asked = True
                try:
                    place.set(says_keys[self.rank], b"perhaps")
                    if add(place, "said", 1) == 1:
                        place.set("members", pack("members", {"ranks": sorted(here - gone)}))
                    else:
                        place.set(says_keys[self.rank], b"no")
                except BaseException:  # the others must not wait for its word
                    self.close()
                    raise
        raise Timeout(
            f"rank {self.rank}: the rank that was to say who is alive has not. Make a new "
            "communicator"
        )

    def _make_of(self, place: Store, members: list[int]) -> Communicator | None:
        """The communicator of those who agreed; None if one has died since."""
        if self.rank not in members:
            self._refuse_late(name_ranks(members))

        def watch() -> None:
            if gone := sorted({*members} & {*self._group.gone_ranks()}):
                raise PeerError(f"{name_ranks(gone)} has gone meanwhile", gone[0])

        store = WatchedStore(place, "group", watch)
        try:
            made = self._make(store, members, self._connections.named_nodes)
        except (PeerError, Timeout):
            # The news of a death may come later than the end of a connection.
            for _ in backoff(time.monotonic() + self._connections.dead_after):
                if {*members} & {*self._group.gone_ranks()}:
                    return None
            raise
        made._store = self._store
        return made

    def _refuse_late(self, others: str) -> NoReturn:
        self.close()
        raise AbortedError(
            f"rank {self.rank} came too late: {others} went on without it; join them by "
            "Communicator.join"
        )

    def _plan(self, name: str, claimed: Claims, newcomers: int, wait: float) -> bool:
        """On rank 0: choose newcomers, write the plan of the new communicator. False: too few."""
        with store_errors("grow"):
            for _ in backoff(time.monotonic() + wait):
                if claimed.claim(newcomers):
                    break
                if gone := self._group.gone_ranks():
                    raise PeerError(
                        f"{name_ranks(gone)} left while newcomers were waited for", gone[0]
                    )
            else:
                return False
            ours = [str(node) for node in self.node_of_rank]
            numbers = sorted(claimed.nodes.items())
            theirs = [f"joined {n}" if node is None else str(node) for n, node in numbers]
            plan = {
                "world_size": self.world_size + newcomers,
                "nodes": ours + theirs if self._connections.named_nodes else None,
                "options": {k: v for k, v in self._options.items() if k != "tuning"},
            }
            self._store.set(f"{name}/plan", pack(f"{name}/plan", plan))
        return True
