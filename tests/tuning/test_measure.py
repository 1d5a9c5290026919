"""What `init` measures: alike on all ranks, in time, and in figures that make sense."""

import time
from dataclasses import replace

import numpy as np
import pytest
from worlds import run_threads

from allreduce import Communicator
from allreduce.communicator.auto_choices import measure_and_follow
from allreduce.schedules import parse_collective
from allreduce.tuning import Choice, LayoutTuning, Tuning, decide, measurement, slopes
from allreduce.tuning.cost import LOCAL_STAGE, NETWORK, SHARED_MEMORY, Layout, Link
from allreduce.tuning.timing import TimeBudget, time_alternating

ALLREDUCE = parse_collective("allreduce")


@pytest.mark.parametrize(
    ("ranks", "nodes", "local", "kinds"),
    [
        (2, 1, "rs_ag", {LOCAL_STAGE}),
        (3, 3, "rs_ag", {NETWORK}),
        (4, 2, "rs_ag", {LOCAL_STAGE, NETWORK}),
        (2, 1, "none", {SHARED_MEMORY}),
    ],
)
def test_all_ranks_measure_the_same(ranks: int, nodes: int, local: str, kinds: set[str]) -> None:
    def body(comm: Communicator) -> tuple[object, ...]:
        tuning = comm.tuning
        assert tuning is not None
        choices = [comm._group.choose(ALLREDUCE, 1 << k) for k in range(4, 28)]
        words = comm.explain(1 << 20).splitlines()
        times = tuning.layouts[0].times["allreduce"]
        rows = decide(times, slopes(comm.layout, times, tuning.links))
        return dict(tuning.links), times, choices, {row.algorithm for row in rows}, words[:-1]

    rows = run_threads(ranks, body, nodes=nodes, local=local, measure=True)
    assert rows == [rows[0]] * ranks
    links, times, choices, decided, _ = rows[0]
    assert set(links) == kinds
    assert all(seconds > 0 for points in times.values() for _, seconds in points)
    if kinds == {LOCAL_STAGE}:
        assert list(times) == ["shared memory"]  # there is nothing to choose
    else:
        assert set(choices) <= decided <= set(times)


def test_a_part_of_a_measured_group_is_not_measured_again() -> None:
    def body(comm: Communicator) -> bool:
        part = comm.split(comm.rank % 2)
        assert part is not None
        with part:
            return part.tuning is comm.tuning

    assert run_threads(4, body, nodes=4, measure=True) == [True] * 4


def test_init_measures_briefly_and_measure_measures_more() -> None:
    def body(comm: Communicator) -> None:
        assert comm.tuning is not None
        assert comm.tuning.brief
        briefly = sum(len(p) for p in comm.tuning.layouts[0].times["allreduce"].values())
        comm.measure()
        assert not comm.tuning.brief
        assert comm.tuning.source.startswith("measured in ")
        well = comm.tuning.layouts[0].times["allreduce"]
        assert sum(map(len, well.values())) > briefly
        part = comm.split(0)
        assert part is not None
        with part:
            assert part.tuning is comm.tuning

    run_threads(2, body, nodes=2, measure=True)


def test_what_would_take_too_long_is_not_measured() -> None:
    def body(comm: Communicator) -> None:
        comm.tuning = None  # as if init had found the same
        measure_and_follow(comm, replace(measurement.BRIEFLY, skip_above=0.0))
        assert comm.tuning is None
        assert "nothing was measured" in comm.explain(1 << 20)
        part = comm.split(0)
        assert part is not None
        with part:
            assert part.tuning is None  # nor is a part of it

    run_threads(2, body, nodes=2, measure=True)


def test_ranks_on_unlike_machines_measure_alike() -> None:
    def body(comm: Communicator) -> tuple[object, ...]:
        comm.layout = replace(comm.layout, ranks_per_core=1.0 + comm.rank)
        comm.measure()
        assert comm.tuning is not None
        choices = [comm._group.choose(ALLREDUCE, 1 << k) for k in range(4, 28)]
        return comm.layout.ranks_per_core, dict(comm.tuning.links), choices

    rows = run_threads(3, body, nodes=3)
    assert rows == [rows[0]] * 3
    assert rows[0][0] == 3.0


def test_a_measurement_keeps_what_a_file_says_of_all_else() -> None:
    def body(comm: Communicator) -> None:
        layout = comm.layout
        own = {"allgather": (Choice(None, "ring"),), "allreduce": (Choice(None, "torus"),)}
        link = Link(1e-6, 1e-9, 0.0)
        here = LayoutTuning(nodes=layout.nodes, local=layout.local, choices=own, lanes=4)
        there = LayoutTuning(nodes=(5, 5), local="none")
        comm.tuning = Tuning(links={SHARED_MEMORY: link}, layouts=(there, here))
        comm.measure()
        choices = comm.tuning.choices(layout)
        assert choices["allgather"] == own["allgather"]
        assert choices["allreduce"] != own["allreduce"]
        found = comm.tuning.of(layout)
        assert found is not None
        assert found.lanes == 4
        assert there in comm.tuning.layouts
        assert len(comm.tuning.layouts) == 2
        assert comm.tuning.links[SHARED_MEMORY] == link
        assert NETWORK in comm.tuning.links

    run_threads(2, body, nodes=2)


def test_measure_makes_a_tuning_where_init_has_made_none() -> None:
    def body(comm: Communicator) -> bool:
        assert comm.tuning is None
        comm.measure()
        return comm.predict(1 << 20) is not None

    assert run_threads(2, body) == [True] * 2
    assert run_threads(1, lambda comm: comm.measure()) == [None]  # there is nothing to measure


def test_the_figures_of_a_model_are_found_again() -> None:
    layout = Layout(node_of_rank=(0, 0, 1, 1, 2, 2, 3, 3))
    links = {LOCAL_STAGE: Link(3e-6, 2e-10, 1e-11), NETWORK: Link(2e-5, 1e-9, 1e-11, 4e-6)}
    sizes = (1 << 10, 1 << 16, 1 << 22)
    times = {
        name: tuple((n, layout.predict(name, n, links)) for n in sizes)
        for name in ("ring", "halving_doubling", "recursive_doubling", "direct")
    }
    found = measurement._figures(layout, [LOCAL_STAGE, NETWORK], times, 1e-11)
    assert found == pytest.approx([3e-6, 0, 2e-10, 2e-5, 4e-6, 1e-9])


def test_no_figure_is_negative() -> None:
    layout = Layout(node_of_rank=(0, 1))
    times = {"ring": ((1 << 10, 1e-3), (1 << 20, 0.9e-3))}  # the larger was the faster
    found = measurement._figures(layout, [NETWORK], times, 0.0)
    assert (found >= 0).all()
    assert found[0] > 0


def test_a_race_is_won_by_the_faster_one_on_all_ranks() -> None:
    effort = TimeBudget(seconds=0.02, least_turns=2, most_turns=4)

    def body(comm: Communicator) -> tuple[dict[str, float], float, int]:
        calls = [0]

        def slow() -> None:
            calls[0] += 1
            time.sleep(0.1)  # more than twice what a barrier takes on a busy machine
            comm.allreduce(np.zeros(1))

        seconds, spent = time_alternating(comm, {"slow": slow, "fast": comm.barrier}, effort)
        return seconds, spent, calls[0]

    rows = run_threads(3, body)
    assert rows == [rows[0]] * 3
    seconds, spent, calls = rows[0]
    assert seconds["fast"] < seconds["slow"]
    assert spent > seconds["slow"]
    assert calls == 4  # a first look, then it has no further turns


def test_measuring_stops_where_the_budget_ends(monkeypatch) -> None:
    def sizes(budget: float, least: int) -> list[int]:
        def body(comm: Communicator) -> list[int]:
            effort = TimeBudget(seconds=0.01, least_turns=2, most_turns=2)
            field = measurement.allreduce_contestants(comm.layout)
            times = measurement.size_sweep(
                comm, field, [1 << k for k in (6, 8, 10, 12)], effort, budget, least
            )
            return [max(nbytes for nbytes, _ in points) for points in times.values()]

        return run_threads(2, body, nodes=2)[0]

    assert max(sizes(0.0, 1)) == 1 << 6
    assert max(sizes(0.0, 2)) == 1 << 8
    assert max(sizes(100.0, 1)) == 1 << 12
