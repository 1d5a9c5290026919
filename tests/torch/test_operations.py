"""Messages, scatter, all-to-all, sparse sums, and misuse: see programs/operations.py."""

import pytest

PROGRAM = "operations.py"
LAYOUTS = [(2, 1), (4, 2)]

pytestmark = pytest.mark.timeout(110)


def test_operations(check, outcomes, assert_passed) -> None:
    assert_passed(check, outcomes)
