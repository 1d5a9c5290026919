"""Modules that change, and second wrappers: see programs/ddp_changes.py."""

import pytest

PROGRAM = "ddp_changes.py"
LAYOUTS = [(2, 1), (2, 2)]

pytestmark = pytest.mark.timeout(110)


def test_ddp_changes(check, outcomes, assert_passed) -> None:
    assert_passed(check, outcomes)
