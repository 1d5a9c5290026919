"""FSDP2 and ZeroRedundancyOptimizer: see programs/sharding.py."""

import pytest

PROGRAM = "sharding.py"
LAYOUTS = [(4, 2)]
pytestmark = pytest.mark.timeout(110)


def test_sharding(check, outcomes, assert_passed) -> None:
    assert_passed(check, outcomes)
