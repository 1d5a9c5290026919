"""ShardedTensor and FSDP's sharded state dicts on CPUs: see programs/sharded_tensors.py."""

import pytest

PROGRAM = "sharded_tensors.py"
LAYOUTS = [(2, 1), (4, 2)]
pytestmark = pytest.mark.timeout(110)


def test_sharded_tensors(check, outcomes, assert_passed) -> None:
    assert_passed(check, outcomes)
