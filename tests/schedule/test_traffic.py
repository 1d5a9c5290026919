"""Rounds and bytes per rank equal the closed forms of the design."""

from fractions import Fraction

import pytest
from schedule_cases import (
    blocks,
    ceil_lg,
    factors,
    floor_lg,
    hierarchical,
    received,
    roots,
    sent,
    sizes,
    torus,
    traffic,
)

from allreduce.schedules import algorithms, by_name

SIZES = [*range(2, 65), 100, 128, 255, 256]
OPTIMAL = {
    "ring": lambda p: 2 * (p - 1),
    "bcube": lambda p: 2 * len(factors(p)),
    "circulant": lambda p: 2 * ceil_lg(p),
    "torus": lambda p: 2 * sum(f - 1 for f in torus(p)),
    "direct": lambda p: 2,
}
POWERS = [2, 4, 8, 16, 32, 64, 128, 256]


@pytest.mark.parametrize("name", OPTIMAL)
def test_optimal_allreduces_have_the_closed_forms_rounds_and_volume(name):
    for p in SIZES:
        schedule = by_name(name, p)
        assert schedule.num_rounds == OPTIMAL[name](p), p
        assert sent(schedule) == received(schedule) == [Fraction(2 * (p - 1), p)] * p


def test_halving_doubling_of_a_power_of_two_is_optimal_in_rounds_and_volume():
    for p in POWERS:
        schedule = by_name("halving_doubling", p)
        assert schedule.num_rounds == 2 * floor_lg(p)
        assert sent(schedule) == received(schedule) == [Fraction(2 * (p - 1), p)] * p


def test_binary_blocks_take_no_extra_round_and_send_at_most_two_buffers():
    for p in SIZES:
        schedule = by_name("halving_doubling", p)
        assert schedule.num_rounds == 2 * floor_lg(p)
        volumes = []
        parts = blocks(p)
        for i, size in enumerate(parts):
            folds = (i > 0) + (i + 1 < len(parts))  # to the larger block, back to the smaller
            volumes += [2 * (1 - Fraction(1, size)) + Fraction(folds, size)] * size
        assert sent(schedule) == volumes
        assert max(volumes) <= 2


def test_recursive_doubling_sends_whole_buffers_in_ceil_lg_p_rounds():
    for p in SIZES:
        schedule = by_name("recursive_doubling", p)
        parts = blocks(p)
        volumes = []
        for i, size in enumerate(parts):
            fold = parts[i - 1] // size if i else 0
            volumes += [floor_lg(size) + fold] * size
        for rank in range(p - parts[0]):  # the finished buffer goes to the ranks beyond
            volumes[rank] += 1
        assert schedule.num_rounds == ceil_lg(p)
        assert sent(schedule) == volumes


def test_binomial_allreduce_takes_two_buffers_along_each_edge_of_the_tree():
    for p in SIZES:
        schedule = by_name("binomial", p)
        assert schedule.num_rounds == 2 * ceil_lg(p)
        assert sum(sent(schedule)) == 2 * (p - 1)
        assert sent(schedule)[0] == ceil_lg(p)


@pytest.mark.parametrize("name", algorithms("reduce_scatter"))
def test_reduce_scatters_send_each_chunk_once(name):
    half = {**OPTIMAL, "halving_doubling": lambda p: 2 * ceil_lg(p)}
    for p in SIZES:
        schedule = by_name(name, p, collective="reduce_scatter")
        assert schedule.num_rounds == half[name](p) // 2
        assert sent(schedule) == [Fraction(p - 1, p)] * p


@pytest.mark.parametrize("name", algorithms("allgather"))
def test_allgathers_mirror_the_reduce_scatters(name):
    for p in SIZES:
        there = by_name(name, p, collective="reduce_scatter")
        back = by_name(name, p, collective="allgather")
        assert sent(back) == received(there)
        assert received(back) == [Fraction(p - 1, p)] * p


def test_trees_move_each_rank_s_data_once():
    for p in SIZES:
        for root in roots("reduce", p):
            for collective in ("broadcast", "reduce"):
                schedule = by_name("binomial", p, collective=collective, root=root)
                assert schedule.num_rounds == ceil_lg(p)
                assert sum(sent(schedule)) == p - 1
            broadcast = by_name("binomial", p, collective="broadcast", root=root)
            assert received(broadcast) == [Fraction(r != root) for r in range(p)]


def test_large_broadcasts_and_reduces_take_twice_the_rounds_and_two_buffers_at_most():
    for p in SIZES:
        for root in roots("reduce", p):
            broadcast = by_name("scatter_allgather", p, collective="broadcast", root=root)
            reduce = by_name("reduce_scatter_gather", p, collective="reduce", root=root)
            assert broadcast.num_rounds == reduce.num_rounds == 2 * ceil_lg(p)
            assert max(sent(broadcast)) <= 2
            assert max(sent(reduce)) < 2


def test_gather_brings_the_root_every_chunk_once():
    for name in algorithms("gather"):
        for p in SIZES:
            schedule = by_name(name, p, collective="gather", root=p // 2)
            assert received(schedule)[p // 2] == Fraction(p - 1, p)
            assert schedule.num_rounds == (1 if name == "direct" else ceil_lg(p))


def test_a_scatter_takes_from_the_root_every_chunk_once():
    for name in algorithms("scatter"):
        for p in SIZES:
            for root in roots("scatter", p):
                schedule = by_name(name, p, collective="scatter", root=root)
                gather = by_name(name, p, collective="gather", root=root)
                assert sent(schedule) == received(gather)
                assert received(schedule) == sent(gather)
                assert sent(schedule)[root] == Fraction(p - 1, p)
                assert schedule.num_rounds == (1 if name == "direct" else ceil_lg(p))


def test_an_alltoall_serves_one_other_rank_a_round():
    for p in sizes("alltoall", SIZES):
        schedule = by_name("pairwise", p, collective="alltoall")
        assert schedule.num_rounds == p - 1
        assert (traffic(schedule) == 1).all()
        pairs = {(int(src), int(dst)) for _, src, dst, *_ in schedule.moves()}
        assert len(pairs) == len(schedule.moves()) == p * (p - 1)


def test_the_barrier_signals_once_a_round():
    for p in SIZES:
        schedule = by_name("dissemination", p, collective="barrier")
        assert schedule.num_rounds == ceil_lg(p)
        assert (traffic(schedule) == 1).all()


def test_halving_doubling_sends_its_largest_messages_to_the_nearest_ranks():
    for p in POWERS:
        for round_, src, dst, lo, hi, _ in by_name("halving_doubling", p).moves():
            step = min(round_, 2 * floor_lg(p) - 1 - round_)
            assert abs(src - dst) == 2**step
            assert hi - lo == p >> (step + 1)


def test_every_rank_of_a_direct_exchange_starts_with_another_receiver():
    for schedule in (by_name("direct", 9), by_name("bcube", 44)):
        first = {}
        for round_, src, dst, *_ in schedule.moves():
            first.setdefault((round_, src), dst)
        for t in range(schedule.num_rounds // 2):
            receivers = [dst for (round_, _), dst in first.items() if round_ == t]
            assert len(set(receivers)) == schedule.world_size


def test_circulant_messages_are_contiguous_modulo_p():
    for p in SIZES:
        per_message = {}
        for round_, src, dst, lo, hi, _ in by_name("circulant", p).moves():
            per_message.setdefault((round_, src, dst), []).append((lo, hi))
        for runs in per_message.values():
            assert len(runs) == 1 or (len(runs) == 2 and runs[0][1] == p and runs[1][0] == 0)


def test_a_hierarchy_sends_one_shard_of_each_rail_between_nodes():
    for rails in (1, 2, 4):
        schedule = hierarchical([4, 4, 4, 4], "halving_doubling", rails)
        crossing = [
            (src, Fraction(int(hi - lo), schedule.num_chunks))
            for _, src, dst, lo, hi, _ in schedule.moves()
            if src // 4 != dst // 4
        ]
        assert {src % 4 for src, _ in crossing} == set(range(rails))
        for node in range(4):
            assert sum(n for src, n in crossing if src // 4 == node) == Fraction(3, 2)
