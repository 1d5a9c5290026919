"""Several tensors on each rank, as ProcessGroupGloo has them: see programs/lists.py."""

import pytest

PROGRAM = "lists.py"
LAYOUTS = [(2, 1), (4, 2)]

pytestmark = pytest.mark.timeout(110)


def test_lists(check, outcomes, assert_passed) -> None:
    assert_passed(check, outcomes)
