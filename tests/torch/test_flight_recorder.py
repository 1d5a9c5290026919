"""torch's flight recorder: see programs/flight_recorder.py."""

from importlib import metadata

import pytest

PROGRAM = "flight_recorder.py"
LAYOUTS = [(2, 1)]
RELEASE = tuple(map(int, metadata.version("torch").split(".")[:2]))
pytestmark = [
    pytest.mark.timeout(110),
    pytest.mark.skipif(RELEASE < (2, 14), reason="torch lends its flight recorder from 2.14 on"),
]


def test_flight_recorder(check, outcomes, assert_passed) -> None:
    assert_passed(check, outcomes)
