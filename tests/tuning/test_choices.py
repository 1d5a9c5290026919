"""Which algorithm serves which size, by times and by links."""

import pytest

from allreduce.tuning import (
    EXTRAPOLATED,
    MEASURED,
    PREDICTED,
    Choice,
    LayoutTuning,
    Tuning,
    decide,
    fastest,
    interpolate,
)
from allreduce.tuning.cost import NETWORK, Layout, Link, distinct_algorithms, predict

KIB = 1 << 10
SMALL_FIRST = {
    "recursive_doubling": ((KIB, 10e-6), (64 * KIB, 400e-6)),
    "ring": ((KIB, 50e-6), (64 * KIB, 100e-6)),
}
FOUR = Layout(node_of_rank=(0, 1, 2, 3))
LINK = Link(alpha=2e-5, beta=1e-9, gamma=1e-10)


def test_times_lie_on_lines_between_the_points_and_go_on_beyond() -> None:
    times = {"ring": ((100, 1.0), (200, 3.0), (300, 3.5))}
    for nbytes, seconds in [(1, 1.0), (100, 1.0), (150, 2.0), (200, 3.0), (250, 3.25), (500, 4.5)]:
        assert interpolate(times, "ring", nbytes) == pytest.approx(seconds)
    assert interpolate(times, "bcube", 100) is None


def test_beyond_the_last_point_the_model_goes_on() -> None:
    # By their last lines ring would win far away; it sends more, so its points must be noise.
    times = {"ring": ((100, 1.0), (200, 1.1)), "bcube": ((100, 0.5), (200, 1.0))}
    slopes = {"ring": 0.02, "bcube": 0.01}
    assert interpolate(times, "ring", 1200, slopes) == pytest.approx(1.1 + 20)
    assert interpolate(times, "bcube", 1200, slopes) == pytest.approx(1.0 + 10)
    assert decide(times)[-1].algorithm == "ring"
    assert decide(times, slopes)[-1].algorithm == "bcube"


def test_an_algorithm_that_was_given_up_has_no_time_beyond() -> None:
    times = {"ring": ((100, 1.0), (200, 2.0)), "binomial": ((100, 5.0),)}
    assert interpolate(times, "binomial", 100) == 5.0
    assert interpolate(times, "binomial", 101) is None


def test_times_never_fall_beyond_the_last_point() -> None:
    assert interpolate({"ring": ((100, 2.0), (200, 1.5))}, "ring", 10_000) == 1.5


def test_the_faster_one_serves_each_side_of_the_crossover() -> None:
    first, second = decide(SMALL_FIRST)
    assert (first.algorithm, second) == ("recursive_doubling", Choice(None, "ring"))
    assert 4 * KIB <= first.up_to <= 16 * KIB  # the lines cross at about 8 KiB


def test_equal_times_do_not_change_the_choice() -> None:
    assert fastest({"halving_doubling": 1.02, "ring": 1.0}) == "halving_doubling"
    assert fastest({"halving_doubling": 1.02, "ring": 1.0}, favourite="ring") == "ring"
    assert fastest({"halving_doubling": 1.05, "ring": 1.0}, favourite="halving_doubling") == "ring"


def test_measured_choices_count_and_other_layouts_follow_the_model() -> None:
    tuned = LayoutTuning(
        nodes=(1, 1, 1, 1),
        local="rs_ag",
        choices={"allreduce": (Choice(None, "binomial"),)},
        times={"allreduce": SMALL_FIRST},
    )
    tuning = Tuning(links={NETWORK: LINK}, layouts=(tuned,))
    assert tuning.choices(FOUR) == {"allreduce": (Choice(None, "binomial"),)}
    assert tuning.seconds(FOUR, "ring", KIB) == (50e-6, MEASURED)
    eight = Layout(node_of_rank=tuple(range(8)))
    expected = predict("ring", 8, KIB, LINK)
    assert tuning.seconds(eight, "ring", KIB) == (pytest.approx(expected), PREDICTED)
    rows = tuning.choices(eight)["allreduce"]
    assert (rows[0].algorithm, rows[-1].up_to) == ("recursive_doubling", None)


def test_a_time_is_measured_inside_of_the_sizes_that_were_and_else_extrapolated() -> None:
    tuned = LayoutTuning(nodes=(1, 1, 1, 1), local="rs_ag", times={"allreduce": SMALL_FIRST})
    tuning = Tuning(links={NETWORK: LINK}, layouts=(tuned,))
    for nbytes, label in (
        (KIB - 1, EXTRAPOLATED), (KIB, MEASURED), (5 * KIB, MEASURED), (64 * KIB, MEASURED),
        (64 * KIB + 1, EXTRAPOLATED), (100 << 20, EXTRAPOLATED),
    ):  # fmt: skip
        found = tuning.seconds(FOUR, "ring", nbytes)
        assert found is not None
        assert found[1] == label, nbytes
    assert tuning.measured_sizes(FOUR, "ring") == (KIB, 64 * KIB)
    assert tuning.measured_sizes(FOUR, "bcube") is None


def test_the_model_chooses_what_it_predicts_to_be_fastest() -> None:
    tuning = Tuning(links={NETWORK: LINK})
    for row in tuning.choices(FOUR)["allreduce"]:
        nbytes = row.up_to or 1 << 32
        least = min(predict(name, 4, nbytes, LINK) for name in distinct_algorithms(4))
        assert predict(row.algorithm, 4, nbytes, LINK) <= 1.03 * least


def test_without_figures_there_is_no_choice() -> None:
    assert Tuning(links={}).choices(FOUR) == {}
    assert Tuning(links={}).seconds(FOUR, "ring", KIB) is None
    assert Tuning(links={NETWORK: LINK}).choices(Layout(node_of_rank=(0, 0))) == {}
