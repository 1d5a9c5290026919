"""What all tests share: fixed seeds. Markers and deadlines are set in pyproject.toml."""

import random
import zlib
from collections.abc import Iterator

import hypothesis
import numpy as np
import pytest

# The same examples in every run, and no deadline but pytest's: machines are busy.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("fixed")


def seed_of(request: pytest.FixtureRequest) -> int:
    return zlib.crc32(request.node.name.encode())


@pytest.fixture(autouse=True)
def fixed_seed(request: pytest.FixtureRequest) -> Iterator[None]:
    """Seeds `random`, whose state is restored; each test has its own seed, from its name."""
    state = random.getstate()
    random.seed(seed_of(request))
    yield
    random.setstate(state)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator of random numbers, the same in every run of this test."""
    return np.random.default_rng(seed_of(request))
