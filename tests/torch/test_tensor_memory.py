"""Tensors whose memory is not as usual: see programs/tensor_memory.py."""

import pytest

PROGRAM = "tensor_memory.py"
LAYOUTS = [(2, 1), (2, 2), (4, 2)]

pytestmark = pytest.mark.timeout(110)


def test_tensor_memory(check, outcomes, assert_passed) -> None:
    assert_passed(check, outcomes)
