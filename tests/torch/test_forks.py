"""Children that are forked from ranks of a process group: see programs/forks.py."""

import pytest

PROGRAM = "forks.py"
LAYOUTS = [(2, 1), (2, 2)]

pytestmark = pytest.mark.timeout(110)


def test_forks(check, outcomes, assert_passed) -> None:
    assert_passed(check, outcomes)
