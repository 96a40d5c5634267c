"""What the tests of all adapters share."""

import pytest

from gem.testing.fault_injection import RELEASE


@pytest.fixture(autouse=True)
def _release():
    """Let go, at the end of a test, of the environments that hang."""
    RELEASE.clear()
    yield
    RELEASE.set()
