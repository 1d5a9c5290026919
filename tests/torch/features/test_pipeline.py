"""Point to point and pipelines: see programs/pipeline.py."""

import pytest

PROGRAM = "pipeline.py"
LAYOUTS = [(4, 2)]
pytestmark = pytest.mark.timeout(110)


def test_pipeline(check, outcomes, assert_passed) -> None:
    assert_passed(check, outcomes)
