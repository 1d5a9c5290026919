"""The laws of composition, and schedules of one's own."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from schedule_cases import ALL, IDS, hierarchical

from allreduce.schedules import Schedule, by_name, even_bounds, from_moves, parse_collective

ALLREDUCE = parse_collective("allreduce")
names = st.sampled_from(["ring", "halving_doubling", "circulant", "bcube"])
sizes = st.integers(2, 17)


def reduce_scatter(name: str, p: int) -> Schedule:
    return by_name(name, p, collective="reduce_scatter")


@given(names, sizes)
def test_a_reduce_scatter_and_its_reverse_are_an_allreduce(name, p):
    half = reduce_scatter(name, p)
    assert half.then(half.reversed()).check(ALLREDUCE) == ""


@given(names, sizes)
def test_reversing_twice_gives_the_same_ways_as_copies(name, p):
    half = reduce_scatter(name, p)
    twice = half.reversed().reversed().moves()
    assert np.array_equal(twice[:, :5], half.moves()[:, :5])
    assert not twice[:, 5].any()


@given(names, sizes, st.integers(1, 5))
def test_refine_distributes_over_then_and_keeps_the_promise(name, p, factor):
    half = reduce_scatter(name, p)
    whole = half.then(half.reversed())
    refined = whole.refine(factor)
    assert refined == half.refine(factor).then(half.reversed().refine(factor))
    assert refined.num_chunks == factor * p
    assert refined.check(ALLREDUCE) == ""


@given(names, sizes, st.randoms(use_true_random=False))
def test_relabel_moves_every_chunk_to_its_new_name(name, p, random):
    schedule = by_name(name, p)
    new_chunk = list(range(schedule.num_chunks))
    random.shuffle(new_chunk)
    renamed = schedule.relabel(new_chunk)
    assert renamed.check(ALLREDUCE) == ""
    assert chunk_moves(renamed) == sorted(
        (round_, src, dst, new_chunk[c], reduce)
        for round_, src, dst, c, reduce in chunk_moves(schedule)
    )


def chunk_moves(schedule: Schedule) -> list[tuple[int, ...]]:
    return sorted(
        (t, src, dst, c, reduce)
        for t, moves in enumerate(schedule.rounds)
        for src, dst, lo, hi, reduce in moves
        for c in range(lo, hi)
    )


@pytest.mark.parametrize("p", [2, 4, 8, 16, 32])
def test_reduce_scatter_by_halving_is_the_allreduce_s_first_half_relabelled(p):
    whole = by_name("halving_doubling", p)
    rounds = whole.num_rounds // 2
    rows = whole.moves()
    first_half = from_moves(p, p, rows[rows[:, 0] < rounds])
    lg = rounds
    owner = [int(f"{c:0{lg}b}"[::-1], 2) for c in range(p)]  # chunk c ends with rank bitreverse(c)
    assert chunk_moves(first_half.relabel(owner)) == chunk_moves(
        reduce_scatter("halving_doubling", p)
    )


@given(sizes, st.integers(1, 3))
def test_overlays_of_two_halves_are_an_allreduce_in_each(p, chunks):
    empty = from_moves(2 * p, p * chunks, [])
    part = by_name("ring", p).refine(chunks)
    evens, odds = list(range(0, 2 * p, 2)), list(range(1, 2 * p, 2))
    both = empty.overlay(0, part, evens, 0).overlay(1, part, odds, 0)
    assert both.num_rounds == part.num_rounds + 1
    assert "rank 1's is missing" in both.check(ALLREDUCE)
    pairs = [(both.num_rounds, r, r ^ 1, 0, p * chunks, 1) for r in range(2 * p)]
    swap = np.concatenate([both.moves(), np.array(pairs, np.int32)])
    assert from_moves(2 * p, p * chunks, swap).check(ALLREDUCE) == ""


@pytest.mark.parametrize("inter", ["ring", "halving_doubling", "circulant"])
def test_a_hierarchy_of_single_ranks_is_its_inter_algorithm(inter):
    assert hierarchical([1] * 7, inter, 1) == by_name(inter, 7)


def test_a_hierarchy_of_one_node_is_its_local_stage():
    half = reduce_scatter("halving_doubling", 6)
    assert hierarchical([6], "ring", 6) == half.then(half.reversed())


@pytest.mark.parametrize(("collective", "name"), ALL, ids=IDS)
def test_moves_and_from_moves_are_inverse(collective, name):
    schedule = by_name(name, 12, collective=collective)
    copy = from_moves(12, schedule.num_chunks, schedule.moves(), collective=collective)
    assert copy == schedule
    assert schedule.moves().dtype == np.int32
    assert schedule.moves().tolist() == [
        [t, *map(int, move)] for t, moves in enumerate(schedule.rounds) for move in moves
    ]


@pytest.mark.parametrize(
    ("moves", "message"),
    [
        ([(0, 0, 3, 0, 1, 0)], r"round 0, move 0=>3\[0\]: no such rank"),
        ([(0, -1, 1, 0, 1, 0)], "no such rank"),
        ([(0, 1, 1, 0, 1, 0)], "a rank sends to itself"),
        ([(0, 0, 1, 1, 1, 0)], "no such chunks"),
        ([(0, 0, 1, 0, 3, 1)], r"move 0\+>1\[0-2\]: no such chunks"),
        ([(0, 0, 1, -1, 1, 0)], "no such chunks"),
        ([(-1, 0, 1, 0, 1, 0)], "rounds must ascend from 0, but row 0 has round -1"),
        ([(1, 0, 1, 0, 1, 0), (0, 1, 0, 0, 1, 0)], "rounds must ascend"),
        ([(2**30, 0, 1, 0, 1, 0)], "rounds must ascend"),
        ([(0, 0, 1, 0, 1, 0), (0, 2, 1, 0, 1, 0)], "written twice in a round"),
        ([(0, 0, 1, 0, 1, 1), (0, 2, 1, 0, 1, 0)], "written twice in a round"),
        ([(0, 0, 1, 0, 1, 0), (0, 2, 1, 0, 1, 1)], "written twice in a round"),
        ([(0, 0, 1, 0)], r"shape \[n, 6\]"),
        ([(0.5, 0, 1, 0, 1, 0)], "moves must be integers, not float64"),
    ],
)
def test_impossible_moves_are_named(moves, message):
    with pytest.raises(ValueError, match=message):
        from_moves(3, 2, moves)


def test_two_reductions_into_one_chunk_may_share_a_round():
    schedule = from_moves(3, 1, [(0, 0, 1, 0, 1, 1), (0, 2, 1, 0, 1, 1)])
    assert schedule.num_rounds == 1


@pytest.mark.parametrize(("world_size", "num_chunks"), [(0, 1), (1, 0), (-1, 1)])
def test_a_schedule_has_a_rank_and_a_chunk(world_size, num_chunks):
    with pytest.raises(ValueError, match="at least 1"):
        from_moves(world_size, num_chunks, [])


def test_compositions_that_do_not_fit_are_refused():
    ring = by_name("ring", 4)
    with pytest.raises(ValueError, match="one world size and chunk count"):
        ring.then(by_name("ring", 5))
    with pytest.raises(ValueError, match="the factor must be at least 1"):
        ring.refine(0)
    for new_chunk in ([0, 1, 2], [0, 1, 2, 2], [0, 1, 2, 4]):
        with pytest.raises(ValueError, match="must permute all chunks"):
            ring.relabel(new_chunk)
    with pytest.raises(ValueError, match="one rank is needed for each"):
        ring.overlay(0, ring, [0, 1, 2], 0)
    with pytest.raises(ValueError, match="rank 4 does not exist"):
        ring.overlay(0, ring, [1, 2, 3, 4], 0)
    with pytest.raises(ValueError, match="chunks do not fit"):
        ring.overlay(0, ring, [0, 1, 2, 3], 1)


@given(st.integers(0, 10**12), st.integers(1, 300))
def test_even_bounds_are_even_and_aligned(count, num_chunks):
    bounds = even_bounds(count, num_chunks)
    assert len(bounds) == num_chunks + 1
    assert bounds[0] == 0
    assert bounds[-1] == count
    assert all(bound % 16 == 0 for bound in bounds[:-1])
    assert all(0 <= c * count // num_chunks - bounds[c] < 16 for c in range(num_chunks))
