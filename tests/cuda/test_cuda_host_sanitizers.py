"""The GPU's block bodies on the CPU, under AddressSanitizer with UBSan, and ThreadSanitizer."""

from pathlib import Path

import host_kernels
import pytest

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("sanitizer", host_kernels.SANITIZERS)
def test_no_body_touches_what_is_not_its_own(tmp_path: Path, sanitizer: str) -> None:
    done = host_kernels.run(host_kernels.program("host_sanitized", tmp_path, sanitizer))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "0 failures\n"
