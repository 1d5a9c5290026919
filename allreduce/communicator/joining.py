"""How processes join a communicator that grows: what they and rank 0 write for each other."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import time
from typing import TYPE_CHECKING, Any

from allreduce.errors import Timeout, UsageError
from allreduce.rendezvous.handshake import job_secret
from allreduce.rendezvous.seal import Seal
from allreduce.rendezvous.store import (
    PrefixStore,
    Store,
    add,
    backoff,
    delete_key,
    get_many,
    store_errors,
)
from allreduce.tuning.option import tuning_for_any_layout

if TYPE_CHECKING:
    from allreduce.communicator.communicator import Communicator

log = logging.getLogger("allreduce")

ASKED = "grow/asked"  # how many processes have asked to join
GRACE = 10.0  # seconds for a rank that has the right to decide, after a deadline
_REFUSED = b"refused"  # in place of what was asked
_ALIVE_SECONDS = 2.0  # in which a process that waits says that it is alive


def ask_to_join(store: Store, node: int | None, timeout: float) -> tuple[str, int]:
    """Ask to join; return the name of the plan by which to enter, and the rank to become."""
    asking = _Asking(store, node)
    deadline, claimed = time.monotonic() + timeout, False
    for _ in backoff(deadline + GRACE):
        if told := asking.look():
            return str(told["name"]), int(told["rank"])
        if time.monotonic() < deadline or claimed:
            continue
        claimed = not asking.withdraw()  # a rank 0 is about to answer
        if not claimed:
            break
    raise Timeout(f"nobody let this process join within {timeout:g} s; all ranks call grow")


class _Asking:
    """What a process that asks to join has written, and looks for."""

    def __init__(self, store: Store, node: int | None) -> None:
        self._store, self._node = store, node
        self._said = b""  # the claim that it has answered
        self._ask()

    def look(self) -> dict[str, Any] | None:
        """Return the answer, if it is there. Meanwhile say to who claims it that this process is
        alive, and ask once more after it was taken for dead.
        """
        answer, claim = f"grow/answer/{self._number}", f"grow/claim/{self._number}"
        found, claimed, asked = get_many(self._store, [answer, claim, self._asked])
        if found is not None:
            self._store.set(self._asked, b"")
            delete_key(self._store, answer)
            return parse(answer, found)
        if asked == _REFUSED:
            raise UsageError(
                "rank 0 does not let this process join: its ALLREDUCE_SECRET_FILE or "
                "ALLREDUCE_SECRET is another one"
            )
        if asked == b"":
            self._ask()
        elif claimed is not None and claimed != self._said:
            self._said = claimed
            self._store.set(f"grow/alive/{self._number}", claimed)
        return None

    def withdraw(self) -> bool:
        """Ask no more; False where somebody has claimed this process already."""
        if add(self._store, _taken(self._number), 1) != 1:
            return False
        self._store.set(self._asked, b"")  # not removed: somebody may be about to read it
        return True

    def _ask(self) -> None:
        self._number = add(self._store, ASKED, 1)
        self._asked = f"{ASKED}/{self._number}"
        self._store.set(self._asked, pack(self._asked, {"node": self._node}))


class Claims:
    """Processes that ask to join, and are claimed: a number of the store is 1 then."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.nodes: dict[int, int | None] = {}  # by the number of who asks

    def claim(self, wanted: int) -> bool:
        """Claim so many of those who ask now, the first first; tell whether there are so many."""
        numbers = range(1, add(self._store, ASKED, 0) + 1)
        found = get_many(self._store, [f"{ASKED}/{number}" for number in numbers])
        asking = {
            n: word for n, word in zip(numbers, found, strict=True) if word and word != _REFUSED
        }
        if len(asking) < wanted:
            return False
        for number, asked in asking.items():
            if len(self.nodes) == wanted:
                break
            if add(self._store, _taken(number), 1) != 1:
                add(self._store, _taken(number), -1)
                continue
            try:
                self.nodes[number] = parse(f"{ASKED}/{number}", asked)["node"]
            except UsageError as error:  # it stays claimed, and asks no more
                log.warning("a process that asks to join has the seal of another job: %s", error)
                self._store.set(f"{ASKED}/{number}", _REFUSED)
        self._let_go_of_the_dead()
        if len(self.nodes) < wanted:
            self.give_back()
            return False
        return True

    def _let_go_of_the_dead(self) -> None:
        """Keep those who answer. The others have died, or stand still and ask again later."""
        word = secrets.token_hex(8).encode()
        for number in self.nodes:
            self._store.set(f"grow/claim/{number}", word)
        for _ in backoff(time.monotonic() + _ALIVE_SECONDS):
            said = get_many(self._store, [f"grow/alive/{number}" for number in self.nodes])
            silent = [n for n, answer in zip(self.nodes, said, strict=True) if answer != word]
            if not silent:
                return
        for number in silent:
            del self.nodes[number]
            self._store.set(f"{ASKED}/{number}", b"")

    def answer(self, name: str, first_rank: int) -> None:
        """Let them in: by the plan under this name, from this rank on."""
        with store_errors("grow"):
            for rank, number in enumerate(sorted(self.nodes), first_rank):
                key = f"grow/answer/{number}"
                self._store.set(key, pack(key, {"name": name, "rank": rank}))

    def give_back(self) -> None:
        """Let others claim them; never raises, for it follows another error."""
        with contextlib.suppress(Exception):  # whatever a store raises
            for number in self.nodes:
                add(self._store, _taken(number), -1)
        self.nodes.clear()


def _taken(number: int) -> str:
    """Return the key of a number, 1 while a rank 0 has claimed this process."""
    return f"grow/taken/{number}"


def enter(kind: type[Any], store: Store, name: str, rank: int) -> Communicator:
    """Become this rank of the communicator of which the plan is in the store."""
    with store_errors("grow"):
        plan = parse(f"{name}/plan", store.get(f"{name}/plan"))
    made: Communicator = kind.from_store(
        PrefixStore(store, name),
        rank,
        plan["world_size"],
        nodes=plan["nodes"],
        tuning=tuning_for_any_layout(os.environ),
        **plan["options"],
    )
    made._store = store
    return made


def pack(key: str, body: dict[str, Any]) -> bytes:
    """Return what is to be written under a key, under the job's seal."""
    return Seal(job_secret(), 0).close(key, json.dumps(body, default=_plain).encode())


def parse(key: str, sealed: bytes) -> dict[str, Any]:
    """Return what was packed for a key; UsageError for the seal of another job."""
    body: dict[str, Any] = json.loads(Seal(job_secret(), 0).open(key, "a rank", bytes(sealed)))
    return body


def _plain(number: Any) -> Any:
    return number.item()  # of NumPy
