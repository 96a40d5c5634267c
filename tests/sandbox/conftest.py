import functools

import pytest

from gem.sandbox import SandboxUnavailable
from gem.sandbox import pool as pools

SANDBOXES = [name for name in pools.BACKENDS if name != "plain"]


@functools.cache
def problem(backend):
    try:
        pools.BACKENDS[backend]().close()
    except SandboxUnavailable as error:
        return str(error)


@pytest.fixture(params=SANDBOXES)
def sandbox(request, monkeypatch):
    """Run a test with each sandbox as the one that works here; skip it where one does not, which is no failure."""
    if problem(request.param):
        pytest.skip(f"{request.param}: {problem(request.param)}")
    monkeypatch.setattr(pools, "find_backend", lambda: request.param)
    return request.param
