"""Several device tensors on each rank, as ProcessGroupGloo has them: see programs/lists.py."""

import pytest

ENVIRONMENT = {"ALLREDUCE_DEVICE_RUNTIME": "cpu"}
PROGRAM = "lists.py"
LAYOUTS = [(2, 1)]

pytestmark = [pytest.mark.timeout(400), pytest.mark.usefixtures("cpu_device")]


def test_lists_on_a_device(check, outcomes, assert_passed) -> None:
    assert_passed(check, outcomes)
