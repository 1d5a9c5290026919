"""Object collectives and checkpoints: see programs/objects.py."""

import pytest

PROGRAM = "objects.py"
LAYOUTS = [(4, 2)]
pytestmark = pytest.mark.timeout(110)


def test_objects(check, outcomes, assert_passed) -> None:
    assert_passed(check, outcomes)
