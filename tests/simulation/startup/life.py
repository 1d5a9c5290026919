"""One start-up of a group: all ranks in one simulated network, with the faults of a scenario."""

from __future__ import annotations

import errno
import os
import select
import socket
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any
from unittest import mock

from allreduce.errors import SystemCallError
from allreduce.rendezvous import (
    acceptor,
    caller,
    connect,
    exchange,
    handshake,
    listener,
    mesh_builder,
    shared_memory,
    startup,
    store,
)
from allreduce.rendezvous.node_layout import NodeIdentity

from . import look
from .net import TCP_DELAY, Epoll, Network, Socket, Store
from .scenario import Fault, Scenario
from .world import BEGIN, Rank, World

# Whose clock, sockets, polling and chance the simulation takes the place of.
_MODULES = (
    exchange,
    acceptor,
    caller,
    connect,
    startup,
    listener,
    store,
    mesh_builder,
    handshake,
)

CROWD = 70  # connections of strangers, more than a door keeps pending


class Life:
    """A start-up from its first call to its last end."""

    timeout = 10.0  # seconds

    def __init__(self, scenario: Scenario, make_world: Callable[[int], World] = World) -> None:
        self.scenario = scenario
        self.world = make_world(scenario.seed)
        self.network = Network(self.world)
        self.store = Store(self.world)
        self.ranks = [
            self.world.add(f"rank {r}", lambda r=r: self._connect(r))
            for r in range(scenario.world_size)
        ]

    def run(self) -> str:
        """Return what is wrong; "" if nothing is."""
        descriptors = len(os.listdir("/proc/self/fd"))
        if self.scenario.again:
            self.store.values = self._earlier_attempt()
        with self._in_place_of_the_system():
            self._schedule()
            self.world.run(BEGIN + 3 * self.timeout)
            wrong = look.at(self)
            self.world.end()
        self._close_memory()
        left = len(os.listdir("/proc/self/fd")) - descriptors
        return wrong or (f"{left} descriptors are left" if left else "")

    def _earlier_attempt(self) -> dict[str, bytes]:
        """What is in the store after ranks of the same job were killed on their way."""
        chance = self.world.random
        wrong = [
            Fault(kind, chance.randrange(self.scenario.world_size), at=0.0, lasts=0.0)
            for kind in ("lanes", "missing")
            if chance.random() < 0.5
        ]
        earlier = Life(replace(self.scenario, seed=-1 - self.scenario.seed, faults=wrong))
        with earlier._in_place_of_the_system():
            earlier._schedule()
            earlier.world.run(BEGIN + 0.1 * chance.random())
            earlier.world.end()
        earlier._close_memory()
        return earlier.store.values

    def _close_memory(self) -> None:
        for rank in self.ranks:
            if isinstance(rank.result, connect.Connections):
                shared_memory.close_fds([rank.result.arena_fd, *rank.result.doorbells])

    def _schedule(self) -> None:
        for r, rank in enumerate(self.ranks):
            late = sum(fault.lasts for fault in self.scenario.of("late", r))
            if not self.scenario.of("missing", r):
                self.world.at(late + self.world.delay(0.02), rank.start)
        for fault in self.scenario.faults:
            self.world.at(fault.at, lambda fault=fault: self._apply(fault))

    def _connect(self, rank: int) -> connect.Connections:
        scenario = self.scenario
        environ = {"ALLREDUCE_HOST": f"10.0.0.{scenario.node_of_rank[rank] + 1}"}
        if scenario.secret:
            environ["ALLREDUCE_SECRET"] = "0123456789abcdef"
        if scenario.of("secret", rank):
            environ["ALLREDUCE_SECRET"] = "fedcba9876543210"
        return connect.connect(
            self.store,
            rank,
            scenario.world_size,
            lanes=scenario.lanes + len(scenario.of("lanes", rank)),
            arena_bytes=lambda local_size: 4096 * local_size,
            timeout=self.timeout,
            environ=environ,
        )

    def _apply(self, fault: Fault) -> None:
        self.world.say(str(fault))
        rank = self.ranks[fault.rank]
        if fault.kind == "kill" and rank.ended is None:
            fault.culprits = {fault.rank}
            if any(sock.state != "listening" for sock in rank.owned):  # it meets the others
                fault.seen_at = self.world.now
            rank.kill()
        elif fault.kind == "pause":
            rank.paused_until = self.world.now + fault.lasts
        elif fault.kind == "store":
            self.store.gone = True
        elif fault.kind == "cut":
            self._cut(fault)
        elif fault.kind in ("stranger", "crowd"):
            self._send_strangers(rank, 1 if fault.kind == "stranger" else CROWD, fault.lasts)
        else:  # from the beginning
            fault.culprits = {fault.rank}
            # Who has another secret may stumble over what an earlier attempt has left, and go.
            if fault.kind != "missing" and not (fault.kind == "secret" and self.scenario.again):
                fault.seen_at = BEGIN

    def _cut(self, fault: Fault) -> None:
        open_now = [s for s in self.network.connections if s.state == "connected"]
        if open_now:
            sock = self.world.random.choice(open_now)
            for side in (sock, sock.peer):
                if side is not None and side.owner in self.ranks:
                    fault.culprits.add(self.ranks.index(side.owner))
            sock.cut()

    def _send_strangers(self, to: Rank, number: int, lasts: float) -> None:
        def body() -> None:
            doors = [s for s in to.owned if s.state == "listening"]
            if not doors:
                return
            door = self.world.random.choice(sorted(doors, key=lambda sock: sock.number))
            strangers = [Socket(self.network, door.family, self.world.me) for _ in range(number)]
            for stranger in strangers:
                stranger.connect_ex(door.address)
            self.world.me.sleep(2 * TCP_DELAY)
            for stranger in strangers[: self.world.random.choice((0, 1, number))]:
                with suppress(OSError):
                    stranger.send(self.world.random.randbytes(self.world.random.randint(1, 80)))
            self.world.me.sleep(lasts)
            for stranger in strangers:
                stranger.close()

        self.world.add("stranger", body).start()

    @contextmanager
    def _in_place_of_the_system(self) -> Iterator[None]:
        """What the start-up's modules know of time, sockets and chance comes from this world."""
        world = self.world
        clock = types.SimpleNamespace(
            monotonic=lambda: world.now, sleep=lambda seconds: world.me.sleep(seconds)
        )
        sockets = types.SimpleNamespace(
            **{
                **vars(socket),
                "socket": lambda family, _kind: Socket(self.network, family, world.me),
            }
        )
        epolls = types.SimpleNamespace(**{**vars(select), "epoll": lambda: Epoll(world)})
        chance = types.SimpleNamespace(
            token_hex=lambda n: world.random.randbytes(n).hex(),
            token_bytes=world.random.randbytes,
            randbits=world.random.getrandbits,
        )
        with ExitStack() as stack:
            for module in _MODULES:
                for name, stand_in in (
                    ("time", clock),
                    ("socket", sockets),
                    ("select", epolls),
                    ("secrets", chance),
                    ("random", world.random),
                ):
                    if isinstance(getattr(module, name, None), types.ModuleType):
                        stack.enter_context(mock.patch.object(module, name, stand_in))
            stack.enter_context(mock.patch.object(startup, "my_identity", self._identity))
            memory = shared_memory.create_shared_memory
            stack.enter_context(
                mock.patch.object(
                    shared_memory,
                    "create_shared_memory",
                    lambda *args, **options: self._memory(memory, *args, **options),
                )
            )
            yield

    def _identity(self) -> NodeIdentity:
        node = self.scenario.node_of_rank[self.ranks.index(self.world.me)]
        return NodeIdentity(boot=f"boot {node}", host=f"host{node}", network="net:[1]")

    def _memory(self, create: Any, *args: Any, **options: Any) -> int:
        if self.scenario.of("memory", self.ranks.index(self.world.me)):
            raise SystemCallError(errno.ENOMEM, "cannot allocate shared memory")
        return int(create(*args, **options))
