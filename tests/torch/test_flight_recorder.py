"""torch's flight recorder: see programs/flight_recorder.py."""

import pytest
from torch_release import needs_torch

PROGRAM = "flight_recorder.py"
LAYOUTS = [(2, 1)]
pytestmark = [
    pytest.mark.timeout(110),
    needs_torch(2, 14, "torch lends its flight recorder from 2.14 on"),
]


def test_flight_recorder(check, outcomes, assert_passed) -> None:
    assert_passed(check, outcomes)
