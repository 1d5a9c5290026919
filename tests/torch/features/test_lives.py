"""Groups that come and go in one process: see programs/lives.py."""

import pytest

PROGRAM = "lives.py"
LAYOUTS = [(4, 2)]
pytestmark = pytest.mark.timeout(110)


def test_lives(check, outcomes, assert_passed) -> None:
    assert_passed(check, outcomes)
