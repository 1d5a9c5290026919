"""The benchmark of process groups that begin and end."""

import pytest
from worlds import SANITIZED

from benchmarks.start_up import COLUMNS, slowest

pytestmark = pytest.mark.skipif(SANITIZED, reason="processes")


def test_a_round_times_each_column():
    times = slowest("hier", 2)
    assert len(times) == len(COLUMNS)
    assert min(times) > 0
