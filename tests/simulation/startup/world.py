"""Virtual time, and ranks that take turns in it.

Each rank is a thread, because its code waits in the middle of calls; but one thread runs at a time,
and which one, a seed decides. Time passes only while all of them wait.
"""

from __future__ import annotations

import heapq
import itertools
import random
import threading
from collections.abc import Callable
from typing import Any

MOST_IN_A_MOMENT = 100_000  # operations of one rank, after which it is said to spin
BEGIN = 1000.0  # seconds: no time is 0


class Killed(BaseException):
    """Ends a rank wherever it is, as a signal would; what it does on its way out has no effect."""


class Rank:
    """A thread of the simulation, and the sockets of its process."""

    def __init__(self, world: World, name: str, body: Callable[[], Any]) -> None:
        self.name = name
        self.dead = False
        self.paused_until = 0.0
        self.result: Any = None  # of the body, or what it raised
        self.ended: float | None = None
        self.owned: set[Any] = set()  # open sockets
        self._world = world
        self._body = body
        self._turn = threading.Semaphore(0)
        self._waiting = 0  # number of the wait that is under way: wakes of earlier ones are stale
        self._operations = (0.0, 0)  # how many at that time
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)

    def start(self) -> None:
        """Let the rank begin now, if it was not killed before."""
        if self.dead:
            return
        self._thread.start()
        self._world.at(0.0, lambda: self.resume(self._waiting))

    def operate(self) -> None:
        """Begin every virtual system call with this."""
        if self.dead:
            raise Killed
        now, count = self._operations
        self._operations = (now, count + 1) if now == self._world.now else (self._world.now, 1)
        assert count < MOST_IN_A_MOMENT, f"{self.name} spins"

    def wait(self, until: float) -> None:
        """Let others go on until that time, or until `poke`."""
        self.operate()
        number = self._waiting
        self._world.at(until - self._world.now, lambda: self.resume(number))
        self._world.baton.release()
        self._turn.acquire()
        if self.dead:
            raise Killed

    def sleep(self, seconds: float) -> None:
        """Wait for so long, whatever happens."""
        until = self._world.now + seconds
        while True:
            self.wait(until)
            if self._world.now >= until:
                return

    def poke(self) -> None:
        """Something has happened that the rank may wait for."""
        number = self._waiting
        self._world.at(self._world.delay(50e-6), lambda: self.resume(number))

    def resume(self, number: int) -> None:
        """End that wait; called by the world."""
        if number != self._waiting or self.ended is not None or self._thread.ident is None:
            return
        if self._world.now < self.paused_until and not self.dead:
            self._world.at(self.paused_until - self._world.now, lambda: self.resume(number))
            return
        self._waiting += 1
        self._turn.release()
        self._world.baton.acquire()

    def kill(self) -> None:
        """Close its sockets and end it."""
        if self.ended is None:
            self.dead = True
            for sock in sorted(self.owned, key=lambda sock: sock.number):
                sock.shut()
            self.resume(self._waiting)

    def _live(self) -> None:
        self._turn.acquire()
        self._world.names[threading.get_ident()] = self
        try:
            self.operate()
            self.result = self._body()
        except BaseException as error:
            self.result = error
        self.ended = self._world.now
        self._world.baton.release()


class World:
    """A clock, what is going to happen, and chance."""

    def __init__(self, seed: int, tells: bool = False) -> None:
        self.now = BEGIN
        self._tells = tells
        self.random = random.Random(seed)
        self.ranks: list[Rank] = []
        self.names: dict[int, Rank] = {}  # by thread
        self.baton = threading.Semaphore(0)  # the world's, while no rank runs
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    @property
    def me(self) -> Rank:
        """The rank that runs."""
        return self.names[threading.get_ident()]

    def at(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something after so many seconds."""
        heapq.heappush(self._events, (self.now + max(0.0, seconds), next(self._order), action))

    def say(self, text: str) -> None:
        """Tell what happens, with the time and who does it, if somebody wants to know."""
        if self._tells:
            who = self.names.get(threading.get_ident())
            print(f"{(self.now - BEGIN) * 1e3:10.3f} ms  {who.name if who else 'fault':<8}  {text}")

    def delay(self, most: float) -> float:
        """Some seconds, mostly few."""
        return most * self.random.random() ** 2

    def add(self, name: str, body: Callable[[], Any]) -> Rank:
        """A rank that has not begun."""
        rank = Rank(self, name, body)
        self.ranks.append(rank)
        return rank

    def run(self, until: float) -> None:
        """Let everything happen that is due before that time."""
        while self._events and self._events[0][0] < until:
            self.now, _, action = heapq.heappop(self._events)
            action()

    def end(self) -> None:
        """Kill who is left, so that no thread is, and let what is under way arrive."""
        for rank in self.ranks:
            rank.kill()
        self.run(float("inf"))
