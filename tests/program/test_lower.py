"""Programs are the schedule, cut into steps whose dependencies suffice and point backwards."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from schedule_cases import ALL, IDS, hierarchical

from allreduce import _C
from allreduce.schedules import Schedule, by_name, even_bounds, from_moves

SEND = 0
SCHEDULES = {
    **{f"{collective}-{name}": by_name(name, 6, collective=collective) for collective, name in ALL},
    "halving_doubling-8": by_name("halving_doubling", 8),
    "hierarchical": hierarchical([2, 3], "halving_doubling", 2),
}
counts = st.sampled_from([0, 1, 5, 6, 17, 97, 500])
segments = st.sampled_from([1, 3, 16, 40, 1 << 40])
schedules = st.sampled_from(sorted(SCHEDULES))


def programs(schedule: Schedule, bounds, segment: int) -> list:
    return [_C.lower(schedule, rank, bounds, segment) for rank in range(schedule.world_size)]


def elements(step) -> range:
    return range(int(step["offset"]), int(step["offset"] + step["count"]))


@given(schedules, counts, segments)
def test_the_steps_of_a_wire_are_its_moves(name, count, segment):
    schedule = SCHEDULES[name]
    bounds = even_bounds(count, schedule.num_chunks)
    moved = defaultdict(list)
    for t, moves in enumerate(schedule.rounds):
        for src, dst, lo, hi, reduce in moves:
            moved[src, dst] += [(t, reduce, e) for e in range(bounds[lo], bounds[hi])]
    for rank, program in enumerate(programs(schedule, count, segment)):
        steps = program.steps
        for peer, is_send, ids in program.queues:
            pair = (rank, peer) if is_send else (peer, rank)
            done = [(s["round"], s["kind"] == 2, e) for s in steps[ids] for e in elements(s)]
            if is_send:  # a send does not know what the receiver will do
                assert not any(reduce for _, reduce, _ in done)
                assert [(t, e) for t, _, e in done] == [(t, e) for t, _, e in moved[pair]]
            else:
                assert done == moved[pair]
        queued = sorted(int(i) for _, _, ids in program.queues for i in ids)
        assert queued == list(range(len(program)))
        pairs = {(rank, peer) if is_send else (peer, rank) for peer, is_send, _ in program.queues}
        assert pairs == {pair for pair, all_moved in moved.items() if rank in pair and all_moved}


@given(schedules, counts, segments)
def test_both_ends_of_a_wire_cut_it_alike(name, count, segment):
    ends = defaultdict(dict)
    for rank, program in enumerate(programs(SCHEDULES[name], count, segment)):
        for peer, is_send, ids in program.queues:
            pair = (rank, peer) if is_send else (peer, rank)
            steps = program.steps[ids]
            ends[pair][is_send] = steps[["offset", "count", "round", "chunk"]].tolist()
    for pair, end in ends.items():
        assert end[True] == end[False], pair


@given(schedules, counts, segments)
def test_steps_hold_at_most_a_segment_and_at_least_an_element(name, count, segment):
    for program in programs(SCHEDULES[name], count, segment):
        assert ((program.steps["count"] >= 1) & (program.steps["count"] <= segment)).all()


@given(schedules, counts, segments)
def test_dependencies_point_backwards_and_are_counted(name, count, segment):
    for rank, program in enumerate(programs(SCHEDULES[name], count, segment)):
        in_degree = np.zeros(len(program), np.int64)
        first = program.first_next
        assert len(first) == len(program) + 1
        assert first[-1] == len(program.next)
        for i in range(len(program)):
            successors = program.next[first[i] : first[i + 1]]
            assert (successors > i).all()
            assert len(set(successors)) == len(successors)
            in_degree[successors] += 1
            assert program.steps[i]["peer"] != rank
        assert (in_degree == program.steps["waits"]).all()


def reaches(program) -> list[set[int]]:
    """For each step the steps that must have finished before it."""
    before = [set() for _ in range(len(program))]
    for i in range(len(program)):
        for n in program.next[program.first_next[i] : program.first_next[i + 1]]:
            before[n] |= before[i] | {i}
    return before


@given(schedules, st.sampled_from([17, 97]), segments)
def test_every_write_is_ordered_against_every_other_use_of_the_element(name, count, segment):
    for program in programs(SCHEDULES[name], count, segment):
        before = reaches(program)
        users, writers = defaultdict(list), defaultdict(list)
        for i, step in enumerate(program.steps):
            for e in elements(step):
                others = users[e] if step["kind"] != SEND else writers[e]
                assert before[i].issuperset(others)
                users[e].append(i)
                if step["kind"] != SEND:
                    writers[e].append(i)


def test_neighbouring_chunks_share_a_step_up_to_the_segment():
    schedule = from_moves(2, 8, [(0, 0, 1, 0, 8, 0)])
    steps = _C.lower(schedule, 0, 128, 48).steps
    assert steps["count"].tolist() == [48, 48, 32]
    assert steps["chunk"].tolist() == [0, 3, 6]


def test_a_long_chunk_is_cut_at_the_segment():
    schedule = from_moves(2, 1, [(0, 0, 1, 0, 1, 0)])
    steps = _C.lower(schedule, 1, 100, 40).steps
    assert steps[["offset", "count"]].tolist() == [(0, 40), (40, 40), (80, 20)]


def test_uneven_bounds_may_leave_chunks_empty():
    schedule = by_name("ring", 4)
    for program in programs(schedule, [0, 0, 7, 7, 9], 100):
        assert set(program.steps["chunk"].tolist()) == {1, 3}


@pytest.mark.parametrize(
    ("rank", "bounds", "segment", "message"),
    [
        (4, 8, 1, "rank must be 0 to 3, not 4"),
        (-1, 8, 1, "rank must be 0 to 3, not -1"),
        (0, [0, 1, 2], 1, "4 chunks need 5 bounds, not 3"),
        (0, [0, 1, 3, 2, 4], 1, "bounds must ascend"),
        (0, 8, 0, "segment must be at least 1"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(rank, bounds, segment, message):
    with pytest.raises(ValueError, match=message):
        _C.lower(by_name("ring", 4), rank, bounds, segment)


@pytest.mark.parametrize(("collective", "name"), ALL, ids=IDS)
def test_a_cut_is_the_same_whatever_the_ranks_call_their_count(collective, name):
    schedule = by_name(name, 5, collective=collective)
    for rank in range(5):
        by_count = _C.lower(schedule, rank, 1000, 100).steps
        by_bounds = _C.lower(schedule, rank, even_bounds(1000, schedule.num_chunks), 100).steps
        assert (by_count == by_bounds).all()
