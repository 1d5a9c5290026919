"""Random numbers of augmentation: pure, uniform, and independent of each other."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.data.augment import uniforms

INDICES = np.arange(20_000)


def test_a_row_depends_on_seed_epoch_and_index_alone() -> None:
    many = uniforms(INDICES, 4, seed=3, epoch=2)
    np.testing.assert_array_equal(uniforms(INDICES[[17, 5]], 4, seed=3, epoch=2), many[[17, 5]])
    np.testing.assert_array_equal(uniforms(INDICES[[17]], 2, seed=3, epoch=2), many[[17], :2])
    for seed, epoch in ((2, 3), (3, 1), (4, 2)):
        assert not np.isin(uniforms(INDICES, 4, seed=seed, epoch=epoch), many).any()


def split_mix(state: int) -> int:
    """The next output of SplitMix64 from `state`, in Python's own integers."""
    mask = 2**64 - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_numbers_are_those_of_split_mix() -> None:
    assert split_mix(0) == 0xE220A8397B1DCDAF  # the published first output of seed 0
    state = 0
    for word in (1, 5, 7, 2):
        state = split_mix((state + word) % 2**64)
    drawn = uniforms(np.array([0, 7]), 3, seed=1, epoch=5)
    assert drawn[1, 2] == (state >> 11) / 2**53


def test_numbers_fill_the_unit_interval_evenly() -> None:
    drawn = uniforms(INDICES, 4, seed=0, epoch=0)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts, _ = np.histogram(drawn, 100, (0, 1))
    assert np.abs(counts / 800 - 1).max() < 0.2  # 5.6 deviations of a fair draw


def test_columns_rows_epochs_and_seeds_are_uncorrelated() -> None:
    drawn = uniforms(INDICES, 3, seed=0, epoch=0)
    others = [uniforms(INDICES, 1, seed=s, epoch=e)[:, 0] for s, e in ((0, 1), (1, 0))]
    series = [*drawn.T, np.roll(drawn[:, 0], 1), *others]
    off_diagonal = np.corrcoef(series) - np.eye(len(series))
    assert np.abs(off_diagonal).max() < 0.03  # 4 deviations of 1 / sqrt(20000)


def test_seeds_of_64_bits_are_allowed() -> None:
    assert uniforms(INDICES[:2], 1, seed=2**64 - 1, epoch=0).shape == (2, 1)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_no_images_need_no_numbers(count: int) -> None:
    assert uniforms(INDICES[:0], count, seed=0, epoch=0).shape == (0, count)
