"""Works and their futures with a pool that is made slow: see programs/futures.py."""

import pytest

PROGRAM = "futures.py"
LAYOUTS = [(2, 1), (3, 3)]
ENVIRONMENT = {"HIER_TEST_SLOW_POOL_MS": "300"}

pytestmark = pytest.mark.timeout(110)


def test_futures(check, outcomes, assert_passed) -> None:
    assert_passed(check, outcomes)
