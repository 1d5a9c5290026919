"""Calls that touch the same memory run in the order of the calls: see programs/order.py."""

import pytest

PROGRAM = "order.py"
LAYOUTS = [(2, 1), (4, 1), (4, 2)]

pytestmark = pytest.mark.timeout(400)


def test_order(check, outcomes, assert_passed) -> None:
    assert_passed(check, outcomes)
