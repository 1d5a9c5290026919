"""allreduce.torch.DistributedDataParallel, and torch's own on hier: see programs/ddp.py."""

import pytest

PROGRAM = "ddp.py"
LAYOUTS = [(2, 1), (4, 2)]
APART = [(2, 1)]

pytestmark = pytest.mark.timeout(110)


def test_ddp(check, outcomes, assert_passed) -> None:
    assert_passed(check, outcomes)
