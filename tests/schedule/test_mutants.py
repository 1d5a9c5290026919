"""A schedule with one move changed is rejected: by the check, or by its traffic."""

import random

import numpy as np
import pytest
from schedule_cases import ALL, traffic

from allreduce.schedules import Schedule, by_name, from_moves, parse_collective

# A signal that is repeated, or that nobody needs, does a barrier no harm.
CASES = [
    (collective, name, p) for collective, name in ALL if collective != "barrier" for p in (5, 8)
]
MUTANTS = 300
LEAST_REJECTED = 0.8  # by the check alone; 88 to 90 % in the large allreduces


def mutate(rng: random.Random, rows: np.ndarray, schedule: Schedule) -> np.ndarray:
    """One move gets another round, end, range or kind, vanishes, or comes twice."""
    rows = rows.copy()
    i = rng.randrange(len(rows))
    kind = rng.choice(("round", "src", "dst", "lo", "hi", "reduce", "remove", "repeat"))
    limits = {
        "round": (0, schedule.num_rounds),
        "src": (0, schedule.world_size),
        "dst": (0, schedule.world_size),
        "lo": (0, schedule.num_chunks),
        "hi": (1, schedule.num_chunks + 1),
        "reduce": (0, 2),
    }
    if kind == "remove":
        return np.delete(rows, i, axis=0)
    if kind == "repeat":
        return np.insert(rows, i, rows[i], axis=0)
    column = list(limits).index(kind)
    rows[i, column] = rng.randrange(*limits[kind])
    return rows[np.argsort(rows[:, 0], kind="stable")]


def rejected(rows: np.ndarray, schedule: Schedule, collective: str) -> Schedule | None:
    """None if the check rejects the mutant, else the mutant."""
    try:
        return from_moves(schedule.world_size, schedule.num_chunks, rows, collective=collective)
    except ValueError:
        return None


def survivors(collective: str, name: str, p: int, wanted: int) -> tuple[int, list[Schedule]]:
    """How many different mutants there were, and those that the check accepts."""
    rng = random.Random(f"{collective} {name} {p}")
    schedule = by_name(name, p, collective=collective)
    rows = schedule.moves()
    tried, accepted = 0, []
    for _ in range(wanted):
        mutant = mutate(rng, rows, schedule)
        if np.array_equal(mutant, rows):
            continue
        tried += 1
        survivor = rejected(mutant, schedule, collective)
        if survivor is not None:
            accepted.append(survivor)
    return tried, accepted


@pytest.mark.parametrize(("collective", "name", "p"), CASES)
def test_every_surviving_mutant_has_other_traffic(collective, name, p):
    original = traffic(by_name(name, p, collective=collective))
    _, accepted = survivors(collective, name, p, MUTANTS)
    for survivor in accepted:
        assert not np.array_equal(traffic(survivor), original), survivor.rounds


def test_the_check_alone_rejects_most_mutants(capsys):
    tried, accepted = 0, 0
    for collective, name, p in CASES:
        number, alive = survivors(collective, name, p, MUTANTS)
        tried += number
        accepted += len(alive)
    rate = 1 - accepted / tried
    with capsys.disabled():
        print(f"\nthe check rejects {tried - accepted} of {tried} mutants, {rate:.1%}")
    assert rate >= LEAST_REJECTED, f"only {rate:.1%} of {tried} mutants are rejected"


@pytest.mark.full
@pytest.mark.parametrize(("collective", "name", "p"), CASES)
def test_every_one_of_many_surviving_mutants_has_other_traffic(collective, name, p):
    original = traffic(by_name(name, p, collective=collective))
    _, accepted = survivors(collective, name, p, 20_000)
    for survivor in accepted:
        assert not np.array_equal(traffic(survivor), original), survivor.rounds


@pytest.mark.parametrize(
    ("collective", "moves", "message"),
    [
        ("allreduce", [(0, 0, 1, 0, 1, 1)], "rank 0 chunk 0: 1 of 2 contributions, rank 1's is"),
        ("allreduce", [(0, 0, 1, 0, 1, 1)] * 2, "counts a contribution twice"),
        (
            "allreduce",
            [(0, 0, 1, 0, 1, 1), (1, 1, 0, 0, 1, 1)],
            r"round 1, move 1\+>0\[0\]: counts a contribution twice \(chunk 0\)",
        ),
        ("broadcast", [(0, 1, 0, 0, 1, 0)], "the sender has no data yet"),
        ("broadcast", [(0, 0, 1, 0, 1, 1)], "adds to a chunk that has no data yet"),
        ("broadcast", [], "rank 1 chunk 0: not the data of rank 0"),
        ("reduce", [(0, 0, 1, 0, 1, 1)], "rank 0 chunk 0: 1 of 2 contributions"),
        ("gather", [(0, 1, 0, 0, 1, 0)], "gather needs one chunk per rank"),
    ],
)
def test_the_check_says_what_is_wrong_first(collective, moves, message):
    with pytest.raises(ValueError, match=message):
        from_moves(2, 1, moves, collective=collective)


def test_a_barrier_that_leaves_a_rank_out_is_no_barrier():
    schedule = by_name("dissemination", 4, collective="barrier")
    rows = schedule.moves()
    for i in range(len(rows)):
        mutant = from_moves(4, 1, np.delete(rows, i, axis=0))
        assert "is missing" in mutant.check(parse_collective("barrier"))
