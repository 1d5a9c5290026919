"""Calls that touch the same device memory run in the order of the calls: see programs/order.py."""

import pytest

ENVIRONMENT = {"ALLREDUCE_DEVICE_RUNTIME": "cpu"}
PROGRAM = "order.py"
LAYOUTS = [(2, 1), (4, 2)]

pytestmark = [pytest.mark.timeout(400), pytest.mark.usefixtures("cpu_device")]


def test_order_on_a_device(check, outcomes, assert_passed) -> None:
    assert_passed(check, outcomes)
