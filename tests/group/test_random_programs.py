"""Random programs over several groups at once: messages and all collectives, each result checked.

A program is a list of steps that all ranks draw alike; a step concerns the members of one group.
Sends, receives and allreduces in the background stay under way while later steps run.
"""

import random
from collections import defaultdict, deque
from contextlib import ExitStack

import numpy as np
import pytest
from group_cases import LOCAL_FORMS, nodes, size
from worlds import run_threads

from allreduce.schedules import algorithms

LAYOUTS = ("1x4", "2x2", "3x1", "2+1", "interleaved", "scattered", "1x3")
COUNTS = (0, 1, 2, 16, 33, 1000, 4095, 4097, 20_000)
TAGS = (0, 1, 99)
STEPS = 25


class Player:
    """One rank. `shared` is seeded alike on all ranks; `own` is not."""

    def __init__(self, groups: dict, rank: int):
        self.groups, self.rank = groups, rank  # name -> (members, communicator or None)

    def play(self, seed: int) -> None:
        self.shared, self.own = random.Random(seed), random.Random(seed * 1000 + self.rank)
        self.works: list[tuple] = []  # (work, array, what it must become)
        self.sent: list[tuple] = []  # likewise, but the receiver may take its time
        # Messages that have been sent to this rank, by group, source and tag.
        self.expected: dict[tuple, deque] = defaultdict(deque)
        for number in range(STEPS):
            group = self.shared.choice(list(self.groups))
            step = self.shared.choice((self.collective, self.message, self.message, self.ring))
            # Drawn by all, members or not, so that all draw alike.
            step(group, random.Random(self.shared.random()), number)
            if self.own.random() < 0.1:
                self.receive_some(3)
            if self.own.random() < 0.1:
                self.settle()
        self.receive_some(STEPS)
        self.works += self.sent
        self.sent = []
        self.settle()
        self.groups["world"][1].barrier()

    def collective(self, group: str, rng: random.Random, number: int) -> None:
        comm = self.groups[group][1]
        kinds = ("sum", "allgather", "reduce_scatter", "broadcast", "reduce", "gather", "scatter")
        kind = rng.choice((*kinds, "alltoall", "alltoallv", "allgatherv", "barrier"))
        if comm is None:
            return
        count, root = rng.choice(COUNTS), rng.randrange(comm.world_size)
        getattr(self, f"_{kind}")(comm, rng, count, root, number)

    def _sum(self, comm, rng, count, _root, number) -> None:
        x = np.full(count, comm.rank + number)
        total = sum(range(comm.world_size)) + comm.world_size * number
        algo, background = rng.choice(["auto", *algorithms("allreduce")]), rng.random() < 0.5
        work = comm.allreduce(x, "sum", algo, async_op=background)
        self.works.append((work if background else None, x, total))

    def _allgather(self, comm, rng, count, _root, number) -> None:
        got = comm.allgather(
            np.full(count, comm.rank * number), rng.choice(algorithms("allgather"))
        )
        assert (got == np.repeat(np.arange(comm.world_size) * number, count)).all()

    def _allgatherv(self, comm, rng, count, _root, number) -> None:
        rows = [rng.randrange(count + 1) for _ in range(comm.world_size)]
        got = comm.allgather(np.full(rows[comm.rank], comm.rank * number), rows=rows)
        assert (got == np.repeat(np.arange(comm.world_size) * number, rows)).all()

    def _reduce_scatter(self, comm, rng, count, _root, number) -> None:
        x = np.tile(np.arange(comm.world_size)[:, None] + number, (1, count))
        got = comm.reduce_scatter(x, "sum", rng.choice(algorithms("reduce_scatter")))
        assert (got == (comm.rank + number) * comm.world_size).all()

    def _broadcast(self, comm, rng, count, root, number) -> None:
        x = np.full(count, comm.rank + number)
        assert (comm.broadcast(x, root, rng.choice(algorithms("broadcast"))) == root + number).all()

    def _reduce(self, comm, rng, count, root, number) -> None:
        x = np.full(count, comm.rank + number)
        comm.reduce(x, "max", root, rng.choice(algorithms("reduce")))
        assert (x == number + (comm.world_size - 1 if comm.rank == root else comm.rank)).all()

    def _gather(self, comm, rng, count, root, number) -> None:
        got = comm.gather(np.full((1, count), number), root, rng.choice(algorithms("gather")))
        assert (got is None) == (comm.rank != root)
        assert got is None or (got == number).all()

    def _scatter(self, comm, rng, count, root, number) -> None:
        x = np.repeat(np.arange(comm.world_size) + number, count) if comm.rank == root else None
        out = np.empty(count, np.int64)
        comm.scatter(out, x, root, rng.choice(algorithms("scatter")))
        assert (out == comm.rank + number).all()

    def _alltoall(self, comm, _rng, count, _root, number) -> None:
        to = np.arange(comm.world_size)
        got = comm.alltoall(np.repeat(comm.rank * 100 + to + number, count))
        assert (got == np.repeat(to * 100 + comm.rank + number, count)).all()

    def _alltoallv(self, comm, rng, count, _root, number) -> None:
        p = comm.world_size
        rows = [[rng.randrange(count + 1) for _ in range(p)] for _ in range(p)]
        mine = [rows[r][comm.rank] for r in range(p)]
        got = comm.alltoall(
            np.repeat(comm.rank * 100 + np.arange(p) + number, rows[comm.rank]),
            rows[comm.rank],
            mine if rng.random() < 0.5 else None,
        )
        assert (got == np.repeat(np.arange(p) * 100 + comm.rank + number, mine)).all()

    def _barrier(self, comm, _rng, _count, _root, _number) -> None:
        comm.barrier()

    def message(self, group: str, rng: random.Random, number: int) -> None:
        """One message; its receiver may take it much later."""
        members, comm = self.groups[group]
        if len(members) < 2:
            return
        source, dest = rng.sample(range(len(members)), 2)
        tag, count, at_once = rng.choice(TAGS), rng.choice(COUNTS), rng.random() < 0.3
        if self.rank == members[source]:
            # A send that blocks needs a receive that is posted in this very step.
            send = comm.send if at_once and rng.random() < 0.5 else comm.isend
            x = np.full(count, number)
            self.sent.append((send(x, dest, tag), x, number))
        elif self.rank == members[dest]:
            self.expected[group, source, tag].append((count, number))
            if at_once:
                while self.expected[group, source, tag]:
                    self.receive(group, source, tag)

    def ring(self, group: str, rng: random.Random, number: int) -> None:
        """Each member to the next, under a tag of its own; the source is asked for or not."""
        members, comm = self.groups[group]
        count, tag = rng.choice(COUNTS), 1000 + number
        if comm is None or len(members) < 2:
            return
        left, right = (comm.rank - 1) % len(members), (comm.rank + 1) % len(members)
        x = np.full(count, left)
        y = np.full(count, comm.rank)
        early = comm.irecv(np.empty(count, np.int64), None, tag) if self.own.random() < 0.5 else 0
        self.works.append((comm.isend(y, right, tag), y, comm.rank))
        if early:
            self.works.append((early, early.wait(), left))
        else:
            source = None if self.own.random() < 0.5 else left
            assert comm.recv(x, source, tag) == (left, tag)
            self.works.append((None, x, left))

    def receive(self, group: str, source: int, tag: int) -> None:
        count, number = self.expected[group, source, tag].popleft()
        comm, x = self.groups[group][1], np.empty(count, np.int64)
        if self.own.random() < 0.5:
            assert comm.recv(x, source, tag) == (source, tag)
            assert (x == number).all()
        else:
            self.works.append((comm.irecv(x, source, tag), x, number))

    def receive_some(self, most: int) -> None:
        for _ in range(most):
            waiting = [key for key, queue in self.expected.items() if queue]
            if not waiting:
                return
            self.receive(*self.own.choice(waiting))

    def settle(self) -> None:
        """Wait for what needs no later step of another rank."""
        self.own.shuffle(self.works)
        while self.works:
            work, x, want = self.works.pop()
            if work is not None:
                work.wait()
            assert (x == want).all(), (x[:5], want)


def make_groups(comm, stack: ExitStack) -> dict:
    """The world, its halves, its even and odd ranks, and the world in reverse."""
    p, rank = comm.world_size, comm.rank
    groups = {"world": (list(range(p)), comm)}
    for name, color in (("half", lambda r: r >= p // 2), ("parity", lambda r: r % 2)):
        mine = stack.enter_context(comm.split(int(color(rank))))
        for value in (0, 1):
            members = [r for r in range(p) if color(r) == value]
            groups[f"{name}{value}"] = (members, mine if rank in members else None)
    reverse = stack.enter_context(comm.split(0, key=-rank))
    groups["reverse"] = (list(range(p))[::-1], reverse)
    return groups


def play(layout: str, local: str, seeds: range, **options) -> None:
    def body(comm):
        with ExitStack() as stack:
            player = Player(make_groups(comm, stack), comm.rank)
            for seed in seeds:
                player.play(seed)

    run_threads(size(layout), body, nodes=nodes(layout), local=local, **options)


@pytest.mark.parametrize("local", LOCAL_FORMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_random_programs(layout, local):
    first = 30 * (LAYOUTS.index(layout) * len(LOCAL_FORMS) + LOCAL_FORMS.index(local))
    play(layout, local, range(first, first + 30))


@pytest.mark.parametrize(("lanes", "segment_bytes"), [(1, 64), (3, 4096)])
def test_random_programs_with_other_options(lanes, segment_bytes):
    play("2x2", "rs_ag", range(1000, 1006), lanes=lanes, segment_bytes=segment_bytes)


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(100))
def test_ten_thousand_random_programs(part):
    first = 10_000 + 100 * part
    layout, local = LAYOUTS[part % len(LAYOUTS)], LOCAL_FORMS[part % len(LOCAL_FORMS)]
    play(layout, local, range(first, first + 100))
