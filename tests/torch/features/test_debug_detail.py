"""TORCH_DISTRIBUTED_DEBUG=DETAIL and the profiler: see programs/debug_detail.py."""

import pytest

PROGRAM = "debug_detail.py"
LAYOUTS = [(2, 2)]
pytestmark = pytest.mark.timeout(110)


def test_debug_detail(check, outcomes, assert_passed) -> None:
    assert_passed(check, outcomes)
