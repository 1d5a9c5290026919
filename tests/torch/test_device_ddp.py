"""Data-parallel training on a device, torch's and ours: see programs/device_ddp.py."""

import pytest

ENVIRONMENT = {"ALLREDUCE_DEVICE_RUNTIME": "cpu"}
PROGRAM = "device_ddp.py"
LAYOUTS = [(2, 1), (3, 3)]

pytestmark = [pytest.mark.timeout(400), pytest.mark.usefixtures("cpu_device")]


def test_device_ddp(check, outcomes, assert_passed) -> None:
    assert_passed(check, outcomes)
