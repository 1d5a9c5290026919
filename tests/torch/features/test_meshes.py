"""DeviceMesh, DTensor and tensor parallelism: see programs/meshes.py."""

import pytest

PROGRAM = "meshes.py"
LAYOUTS = [(4, 2)]
pytestmark = pytest.mark.timeout(110)


def test_meshes(check, outcomes, assert_passed) -> None:
    assert_passed(check, outcomes)
