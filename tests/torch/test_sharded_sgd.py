"""allreduce.torch.ShardedSGD: see programs/sharded_sgd.py."""

import pytest

PROGRAM = "sharded_sgd.py"
LAYOUTS = [(1, 1), (2, 1), (3, 1), (4, 1), (4, 2), (3, 2)]

pytestmark = pytest.mark.timeout(110)


def test_sharded_sgd(check, outcomes, assert_passed) -> None:
    assert_passed(check, outcomes)
