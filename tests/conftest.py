"""What all tests share: fixed seeds. Markers and deadlines are set in pyproject.toml."""

import gc
import random
import signal
import zlib
from collections.abc import Iterator

import hypothesis
import numpy as np
import pytest

# The same examples in every run, and no deadline but pytest's: machines are busy.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("fixed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--sample",
        type=int,
        default=1,
        metavar="N",
        help="run one test in N, always the same ones: for runs under a sanitizer",
    )


def pytest_configure() -> None:
    # A shell that starts this in the background lets it ignore Ctrl-C, and so its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects what `--sample` leaves out."""
    one_in = config.getoption("--sample")
    left_out = [item for item in items if zlib.crc32(item.nodeid.encode()) % one_in]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


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


def pytest_collection_finish() -> None:
    """Thousands of collected tests stay: no garbage collection need look at them again."""
    gc.collect()
    gc.freeze()
