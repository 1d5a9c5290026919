"""The release of torch that is installed, and tests that need a newer one."""

from importlib import metadata

import pytest


def torch_release() -> tuple[int, ...]:
    """Major and minor number."""
    return tuple(map(int, metadata.version("torch").split(".")[:2]))


def needs_torch(major: int, minor: int, reason: str) -> pytest.MarkDecorator:
    """A mark that skips tests with an older one."""
    return pytest.mark.skipif(torch_release() < (major, minor), reason=reason)
