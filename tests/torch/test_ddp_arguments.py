"""torch arguments and methods on our wrapper: see programs/ddp_arguments.py."""

import pytest

PROGRAM = "ddp_arguments.py"
LAYOUTS = [(2, 1), (3, 2)]

pytestmark = pytest.mark.timeout(110)


def test_ddp_arguments(check, outcomes, assert_passed) -> None:
    assert_passed(check, outcomes)
