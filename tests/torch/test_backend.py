"""The c10d backend "hier": see programs/collectives.py."""

import pytest

PROGRAM = "collectives.py"
LAYOUTS = [(2, 1), (4, 2)]
APART = [(2, 1)]

pytestmark = pytest.mark.timeout(110)


def test_collectives(check, outcomes, assert_passed) -> None:
    assert_passed(check, outcomes)
