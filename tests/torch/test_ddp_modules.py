"""allreduce.torch.DistributedDataParallel around unusual modules: see programs/ddp_modules.py."""

import pytest

PROGRAM = "ddp_modules.py"
LAYOUTS = [(2, 1), (4, 2)]
APART = [(2, 1)]

pytestmark = pytest.mark.timeout(110)


def test_ddp_modules(check, outcomes, assert_passed) -> None:
    assert_passed(check, outcomes)
