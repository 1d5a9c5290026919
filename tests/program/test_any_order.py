"""Any topological order of all programs gives the oracle's bits, with hardly any buffering."""

import random
from collections import defaultdict, deque
from collections.abc import Sequence

import numpy as np
import pytest
from arithmetic import STORAGE, combine
from oracle import expected
from schedule_cases import ALL, IDS, hierarchical

from allreduce import _C
from allreduce.schedules import Schedule, by_name

EVERYTHING = 1 << 30


class Ranks:
    """Executes all programs, one random runnable step at a time.

    capacity: how many steps a wire holds; 0 is a rendezvous, where a send and its receive happen
    together.
    """

    def __init__(self, schedule, inputs, bounds, segment, *, dtype, op, capacity, rng):
        self.buffers = [np.array(x) for x in inputs]
        self.dtype, self.op, self.capacity, self.rng = dtype, op, capacity, rng
        self.programs = [
            _C.lower(schedule, rank, bounds, segment) for rank in range(schedule.world_size)
        ]
        self.steps = [program.steps.tolist() for program in self.programs]
        self.next = [(program.first_next, program.next) for program in self.programs]
        self.waits = [[step[4] for step in steps] for steps in self.steps]
        self.queues = {}
        for rank, program in enumerate(self.programs):
            for peer, is_send, ids in program.queues:
                self.queues[rank, peer, is_send] = deque(ids.tolist())
        self.wires = defaultdict(deque)

    def ready(self, rank, peer, is_send) -> bool:
        queue = self.queues[rank, peer, is_send]
        if not queue or self.waits[rank][queue[0]]:
            return False
        if not is_send:
            return bool(self.wires[peer, rank])
        if self.capacity == 0:
            receives = self.queues[peer, rank, False]
            return self.waits[peer][receives[0]] == 0
        return len(self.wires[rank, peer]) < self.capacity

    def run(self) -> list[np.ndarray]:
        """Returns the buffers. Raises RuntimeError if some steps wait for ever."""
        while runnable := [key for key in self.queues if self.ready(*key)]:
            rank, peer, is_send = self.rng.choice(runnable)
            self.take(rank, peer, is_send)
            if is_send and self.capacity == 0:
                self.take(peer, rank, False)
        if any(self.queues.values()):
            raise RuntimeError("deadlock")
        return self.buffers

    def take(self, rank, peer, is_send) -> None:
        step = self.queues[rank, peer, is_send].popleft()
        kind, _, offset, count, *_ = self.steps[rank][step]
        own = self.buffers[rank][offset : offset + count]
        if is_send:
            self.wires[rank, peer].append(own.copy())
        else:
            data = self.wires[peer, rank].popleft()
            own[:] = combine(self.dtype, self.op, own, data) if kind == 2 else data
        first, successors = self.next[rank]
        for successor in successors[first[step] : first[step + 1]]:
            self.waits[rank][successor] -= 1


def random_inputs(rng: np.random.Generator, dtype: str, ranks: int, count: int) -> list[np.ndarray]:
    if dtype == "bfloat16":
        floats = rng.standard_normal((ranks, count), np.float32)
        return list((floats.view(np.uint32) >> 16).astype(np.uint16))
    if dtype == "bool":
        return list(rng.integers(0, 2, (ranks, count)).astype(bool))
    if np.issubdtype(STORAGE[dtype], np.integer):
        return list(rng.integers(0, 100, (ranks, count)).astype(STORAGE[dtype]))
    return list(rng.standard_normal((ranks, count)).astype(STORAGE[dtype]))


def run(
    schedule: Schedule,
    inputs: Sequence[np.ndarray],
    segment: int,
    seed: int,
    *,
    dtype: str = "float32",
    op: str = "sum",
    capacity: int = EVERYTHING,
) -> list[np.ndarray]:
    ranks = Ranks(
        schedule,
        inputs,
        len(inputs[0]),
        segment,
        dtype=dtype,
        op=op,
        capacity=capacity,
        rng=random.Random(seed),
    )
    return ranks.run()


def same_bits(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return [x.tobytes() for x in a] == [x.tobytes() for x in b]


@pytest.mark.parametrize("capacity", [1, EVERYTHING])
@pytest.mark.parametrize(("collective", "name"), ALL, ids=IDS)
def test_any_order_gives_the_oracle_s_bits(collective, name, capacity, rng):
    for p, count, segment in ((2, 50, 7), (5, 0, 3), (5, 97, 16), (8, 150, 1 << 40), (7, 6, 1)):
        schedule = by_name(name, p, collective=collective)
        inputs = random_inputs(rng, "float32", p, count)
        result = expected(schedule, inputs)
        for seed in range(2):
            assert same_bits(run(schedule, inputs, segment, seed, capacity=capacity), result)


@pytest.mark.full
@pytest.mark.parametrize(("collective", "name"), ALL, ids=IDS)
@pytest.mark.timeout(600)
def test_any_order_at_every_size_gives_the_oracle_s_bits(collective, name, rng):
    for p in range(1, 18):
        schedule = by_name(name, p, collective=collective)
        for count in (0, 1, p - 1, 101, 16 * p):
            inputs = random_inputs(rng, "float32", p, count)
            result = expected(schedule, inputs)
            for segment in (1, 16, 40, 1 << 40):
                assert same_bits(run(schedule, inputs, segment, segment), result), (p, count)


@pytest.mark.parametrize("rails", [1, 2])
def test_any_order_of_a_hierarchy_gives_the_oracle_s_bits(rails, rng):
    schedule = hierarchical([2, 3, 2], "halving_doubling", rails)
    inputs = random_inputs(rng, "float32", 7, 120)
    for seed in range(3):
        result = run(schedule, inputs, 16, seed, capacity=1)
        assert same_bits(result, expected(schedule, inputs))
        assert all(x.tobytes() == result[0].tobytes() for x in result)


@pytest.mark.parametrize("p", [4, 6, 11])
@pytest.mark.parametrize(("collective", "name"), ALL, ids=IDS)
def test_a_rendezvous_suffices_unless_a_chunk_is_sent_and_added_to_in_one_round(
    collective, name, p, rng
):
    schedule = by_name(name, p, collective=collective)
    inputs = random_inputs(rng, "float32", p, 100)
    if name in ("recursive_doubling", "dissemination"):
        with pytest.raises(RuntimeError, match="deadlock"):
            run(schedule, inputs, 16, 0, capacity=0)
    else:
        assert same_bits(run(schedule, inputs, 16, 0, capacity=0), expected(schedule, inputs))


@pytest.mark.parametrize("dtype", STORAGE)
def test_every_dtype_is_summed_as_the_oracle_says(dtype, rng):
    schedule = by_name("halving_doubling", 5)
    inputs = random_inputs(rng, dtype, 5, 100)
    result = expected(schedule, inputs, dtype=dtype)
    assert same_bits(run(schedule, inputs, 16, 1, dtype=dtype), result)
    assert all(x.tobytes() == result[0].tobytes() for x in result)


def test_the_oracle_adds_bfloat16_in_float32_and_rounds_each_sum():
    schedule = by_name("binomial", 2)
    one, tiny = np.float32(1), np.float32(2**-8)  # half of the last place of 1, and a bit more
    for added, sum_ in ((tiny, 1.0), (tiny * np.float32(1.0078125), 1.0078125)):
        inputs = [(np.array([x]).view(np.uint32) >> 16).astype(np.uint16) for x in (one, added)]
        for rank in expected(schedule, inputs, dtype="bfloat16"):
            assert (rank.astype(np.uint32) << 16).view(np.float32) == [sum_]


def test_the_oracle_divides_an_average_once_at_the_end():
    inputs = [np.full(3, x, np.float32) for x in (1, 2, 4)]
    for rank in expected(by_name("ring", 3), inputs, op="avg"):
        assert (rank == np.float32(7) / np.float32(3)).all()
