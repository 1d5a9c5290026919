"""The canonical algorithms add each element along one tree over rank order, whatever the layout.

Schedules run on expression trees instead of numbers: a node is a number that stands for the
unordered pair of its operands (adding is commutative to the bit), a leaf for one rank's input.
"""

from itertools import count

import pytest
from oracle import execute
from schedule_cases import hierarchical, roots

from allreduce.schedules import Schedule, algorithms, by_name

CANONICAL = ("halving_doubling", "recursive_doubling", "binomial")


class Expressions:
    """Numbers sums so that equal trees, up to the order of operands, have equal numbers."""

    def __init__(self):
        self._numbers = {}
        self._next = count(-1, -1)  # leaves are the ranks, 0 and up

    def add(self, a: int, b: int) -> int:
        key = (a, b) if a < b else (b, a)
        if key not in self._numbers:
            self._numbers[key] = next(self._next)
        return self._numbers[key]

    def tree(self, lo: int, hi: int) -> int:
        """tree(p) = tree(largest power of two <= p) + tree(the rest), over ranks [lo, hi)."""
        if hi - lo == 1:
            return lo
        half = 1 << ((hi - lo - 1).bit_length() - 1)
        return self.add(self.tree(lo, lo + half), self.tree(lo + half, hi))

    def run(self, schedule: Schedule) -> list[list[int]]:
        cells = [[rank] * schedule.num_chunks for rank in range(schedule.world_size)]
        return execute(schedule, cells, self.add)


def assert_canonical(schedule: Schedule) -> None:
    expressions = Expressions()
    p = schedule.world_size
    canonical = expressions.tree(0, p)
    assert expressions.run(schedule) == [[canonical] * schedule.num_chunks] * p


def test_the_tree_of_five_ranks_is_four_and_one():
    e = Expressions()
    four = e.add(e.add(0, 1), e.add(2, 3))
    assert e.tree(0, 5) == e.add(four, 4)
    assert e.tree(0, 7) == e.add(four, e.add(e.add(4, 5), 6))
    assert e.tree(0, 5) != e.add(e.add(e.add(0, 1), 2), e.add(3, 4))


@pytest.mark.parametrize("name", CANONICAL)
def test_every_world_size_to_64_adds_along_the_tree(name):
    for p in range(1, 65):
        assert_canonical(by_name(name, p))


@pytest.mark.full
@pytest.mark.parametrize("name", CANONICAL)
@pytest.mark.timeout(600)
def test_every_world_size_to_256_adds_along_the_tree(name):
    for p in range(65, 257):
        assert_canonical(by_name(name, p))


def test_reduce_scatter_by_halving_gives_the_allreduce_s_order_for_any_world_size():
    for p in range(1, 65):
        expressions = Expressions()
        done = expressions.run(by_name("halving_doubling", p, collective="reduce_scatter"))
        assert {done[rank][rank] for rank in range(p)} == {expressions.tree(0, p)}


@pytest.mark.parametrize("name", algorithms("reduce"))
def test_a_reduce_adds_along_the_tree_for_any_root(name):
    for p in range(1, 65):
        for root in roots("reduce", p):
            schedule = by_name(name, p, collective="reduce", root=root)
            expressions = Expressions()
            done = expressions.run(schedule)
            assert done[root] == [expressions.tree(0, p)] * schedule.num_chunks


@pytest.mark.parametrize("inter", CANONICAL)
def test_nodes_of_one_power_of_two_size_add_like_a_flat_group(inter):
    for local_size in (1, 2, 4, 8):
        for num_nodes in (1, 2, 3, 4, 5, 7, 8):
            for rails in {1, local_size // 2 or 1, local_size}:
                assert_canonical(hierarchical([local_size] * num_nodes, inter, rails))


@pytest.mark.parametrize("name", ["ring", "bcube", "circulant", "torus", "direct"])
def test_the_other_orders_are_their_own_but_the_same_on_all_ranks(name):
    for p in (5, 6, 12, 16):
        schedule = by_name(name, p)
        expressions = Expressions()
        done = expressions.run(schedule)
        assert all(row == done[0] for row in done)
        assert set(done[0]) != {expressions.tree(0, p)}
