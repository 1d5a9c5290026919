"""bucket_bytes="auto": the choice itself, and in training (programs/bucket_size.py)."""

import numpy as np
import pytest
import torch

from allreduce.torch.ddp.bucket_size import DEFAULT, Profile, choose

PROGRAM = "bucket_size.py"
LAYOUTS = [(2, 1), (4, 2)]

pytestmark = pytest.mark.timeout(110)

LAYERS = 32
PARAMETERS = [torch.empty(1 << 18) for _ in range(LAYERS)]  # 1 MiB each
ORDER = list(range(LAYERS))[::-1]
MS = 1e-3


def test_bucket_size(check, outcomes, assert_passed) -> None:
    assert_passed(check, outcomes)


def chosen(
    *, layer: float, call: float, mebibyte: float, busy: bool = False, first: float = 0.0
) -> int:
    """With a gradient each `layer` seconds, and reductions of that cost."""
    ready = np.empty(LAYERS)
    ready[ORDER] = first + layer * np.arange(1, LAYERS + 1)

    def seconds(nbytes: int) -> float:
        return call + mebibyte * nbytes / (1 << 20)

    return choose(PARAMETERS, ORDER, ready, seconds, busy=busy)


def test_a_slow_backward_pass_and_cheap_calls_take_small_buckets() -> None:
    # Only the last bucket is exposed.
    assert chosen(layer=10 * MS, call=0.01 * MS, mebibyte=5 * MS) <= 1 << 20


def test_dear_calls_take_large_buckets() -> None:
    assert chosen(layer=0.1 * MS, call=50 * MS, mebibyte=0.1 * MS) == LAYERS << 20


def test_where_nothing_is_hidden_the_least_sum_counts() -> None:
    costs = {"layer": 10 * MS, "call": 4 * MS, "mebibyte": 5 * MS}
    assert chosen(**costs, busy=False) <= 1 << 20
    assert chosen(**costs, busy=True) == LAYERS << 20
    long = {"layer": 100 * MS, "call": 0.1 * MS, "mebibyte": 0.1 * MS}  # no gain to the whole pass
    assert chosen(**long, busy=True) == LAYERS << 20


def test_without_a_gain_the_default_stays() -> None:
    assert chosen(layer=10 * MS, call=0.0, mebibyte=0.0) == DEFAULT


def test_it_is_the_best_of_all_sizes() -> None:
    costs = {"layer": 1 * MS, "call": 0.8 * MS, "mebibyte": 0.4 * MS}

    def end(per_bucket: int) -> float:  # by hand: buckets of so many layers
        done = 0.0
        for last in range(per_bucket, LAYERS + 1, per_bucket):
            done = max(done, last * costs["layer"]) + costs["call"]
            done += per_bucket * costs["mebibyte"]
        return done

    best = min((1, 2, 4, 8, 16, 32), key=end)
    assert chosen(**costs) == best << 20
    assert best not in (1, 32)


def test_a_profile_keeps_the_least_time_of_each_gradient() -> None:
    profile = Profile(3)
    for ready in ([0, 1], [1, 0], [0, 1]):
        assert not profile.complete
        profile.begin()
        for index in ready:
            profile.ready(index)
        profile.end()
    assert profile.complete
    assert (profile.seconds >= 0).all()
    assert (profile.seconds < 60).all()
    assert profile.seconds[2] >= profile.seconds[:2].max()  # never came: at the end
