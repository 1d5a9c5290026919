"""Functional collectives, eager and compiled: see programs/compiled.py."""

import pytest

PROGRAM = "compiled.py"
LAYOUTS = [(2, 2)]
pytestmark = pytest.mark.timeout(110)


def test_compiled(check, outcomes, assert_passed) -> None:
    assert_passed(check, outcomes)
