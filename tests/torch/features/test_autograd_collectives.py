"""Collectives that autograd passes through: see programs/autograd_collectives.py."""

import pytest

PROGRAM = "autograd_collectives.py"
LAYOUTS = [(4, 2)]
pytestmark = pytest.mark.timeout(110)


def test_autograd_collectives(check, outcomes, assert_passed) -> None:
    assert_passed(check, outcomes)
