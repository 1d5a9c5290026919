"""Groups out of groups, and groups side by side."""

import numpy as np
import pytest
from group_cases import nodes, size
from worlds import run_threads

from allreduce.errors import UsageError
from allreduce.rendezvous.store import MemoryStore


class PlainStore:
    """No more than a rendezvous may ask for: set, get and check."""

    def __init__(self):
        self._store = MemoryStore(20.0)
        self.set, self.get, self.check = self._store.set, self._store.get, self._store.check


def total(comm, value: float) -> float:
    return float(comm.allreduce(np.array([value]))[0])


@pytest.mark.parametrize("layout", ["1x4", "2x2", "4x2", "3+1+2", "interleaved"])
def test_each_color_is_a_group(layout):
    def body(comm):
        with comm.split(comm.rank % 2) as mine:
            members = range(comm.rank % 2, comm.world_size, 2)
            assert mine.world_size == len(members)
            assert mine.rank == comm.rank // 2
            assert total(mine, comm.rank) == sum(members)
        assert total(comm, 1) == comm.world_size  # the first one still works

    run_threads(size(layout), body, nodes=nodes(layout))


def test_the_key_orders_the_ranks():
    def body(comm):
        with comm.split(5, key=-comm.rank) as mine:
            return mine.rank, mine.allgather(np.array([comm.rank])).tolist()

    assert run_threads(4, body, nodes=2) == [(3 - r, [3, 2, 1, 0]) for r in range(4)]


def test_equal_keys_keep_the_order_of_ranks():
    def body(comm):
        with comm.split(0, key=comm.rank % 2) as mine:
            return mine.rank

    assert run_threads(4, body) == [0, 2, 1, 3]


def test_a_rank_without_a_color_gets_no_group():
    def body(comm):
        mine = comm.split(None if comm.rank == 1 else 0)
        return None if mine is None else total(mine, comm.rank)

    assert run_threads(3, body) == [2.0, None, 2.0]


def test_nodes_stay_what_they_were():
    def body(comm):
        mine = comm.split(comm.local_rank)  # the rails
        other = comm.split(comm.node)  # the nodes
        return mine.num_nodes, mine.local_size, other.num_nodes, other.local_size

    assert run_threads(4, body, nodes=2) == [(2, 1, 1, 2)] * 4


def test_splits_of_splits_and_of_the_same_group_again():
    def body(comm):
        half = comm.split(comm.rank // 4)
        quarter = half.split(half.rank // 2)
        again = comm.split(comm.rank // 4)
        return total(quarter, comm.rank), total(again, comm.rank), total(half, 1)

    results = run_threads(8, body, nodes=2)
    assert results == [([1, 5, 9, 13][r // 2], [6, 22][r // 4], 4) for r in range(8)]


def test_options_are_inherited():
    def body(comm):
        with comm.split(0) as mine:
            return mine.hierarchical, mine._group.timeout

    assert run_threads(2, body, local="none", timeout=17.0) == [(False, 17.0)] * 2


def test_a_color_is_no_negative_number():
    def body(comm):
        with pytest.raises(UsageError, match="color=-1"):
            comm.split(-1)

    run_threads(2, body)


def test_every_generation_splits_on_a_store_that_cannot_delete():
    store = PlainStore()

    def body(comm):
        with comm.split(0) as mine:
            return total(mine, 1)

    for generation in range(3):
        assert run_threads(2, body, store=store, generation=generation) == [2.0] * 2


def test_groups_side_by_side_do_not_disturb_each_other():
    def body(comm):
        pairs = [comm.split(0) for _ in range(4)]
        works = [
            pair.allreduce(np.full(1000, i + 1.0), async_op=True)
            for i, pair in enumerate(pairs if comm.rank else pairs[::-1])
        ]
        return [float(work.wait()[0]) for work in works]

    # The second rank starts them in the other order: they are independent.
    assert run_threads(2, body) == [[5.0] * 4] * 2
