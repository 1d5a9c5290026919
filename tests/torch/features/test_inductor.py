"""Functional collectives in code that torch.compile's inductor generates: programs/inductor.py."""

import pytest

PROGRAM = "inductor.py"
LAYOUTS = [(2, 2)]

# It calls a C++ compiler many times.
pytestmark = [pytest.mark.full, pytest.mark.timeout(110)]


def test_inductor(check, outcomes, assert_passed) -> None:
    assert_passed(check, outcomes)
