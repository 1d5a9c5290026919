"""DistributedDataParallel of torch with its options and hooks: see programs/stock_ddp.py."""

import pytest

PROGRAM = "stock_ddp.py"
LAYOUTS = [(4, 2)]
pytestmark = pytest.mark.timeout(110)


def test_stock_ddp(check, outcomes, assert_passed) -> None:
    assert_passed(check, outcomes)
