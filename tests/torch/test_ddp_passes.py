"""Which backward passes of DistributedDataParallel reduce: see programs/ddp_passes.py."""

import pytest

PROGRAM = "ddp_passes.py"
LAYOUTS = [(2, 1), (4, 2)]

pytestmark = pytest.mark.timeout(110)


def test_ddp_passes(check, outcomes, assert_passed) -> None:
    assert_passed(check, outcomes)
