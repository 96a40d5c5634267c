r"""Jobs as a user would write them: a package of their own (``site/mylab``), not the examples.

``site`` is what a ``site-packages`` folder would be: the package, and the ``dist-info`` with its entry points. Each
test here, and each process that it starts, has it on its path, so ``mylab:Near-v0``, ``mylab:Flaky-v0`` and
``mylab:Near-v0-tool`` are ids like any other, in Ray's workers too; ``import mylab`` gives ``mylab.make_env`` and the
classes. What they do is in ``mylab``'s docstrings. Tasks of several ids, of which some fail:

    env=mylab:Near-v0,seeds=0:16;env=mylab:Flaky-v0,fails=member,attempts=<folder>,seeds=0:16

Tests that train are marked ``slow``.
"""

import os
import sys
from pathlib import Path

import pytest

from gem import registry

SITE = Path(__file__).parent / "site"
collect_ignore = ["site"]  # not searched for doctests: it is imported where it is on the path only


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("slow") and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(1800))  # their trainers have limits of up to 20 minutes


@pytest.fixture(autouse=True)
def mylab_is_installed(monkeypatch):
    """Make the package importable and its entry points visible, here and in processes that are started."""
    monkeypatch.syspath_prepend(SITE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(SITE), os.environ.get("PYTHONPATH")])))
    monkeypatch.setattr(registry, "_entry_points_read", False)  # they may have been read without the package
    yield
    for env_id in [env_id for env_id in registry.ENV_REGISTRY if env_id.startswith("mylab:")]:
        del registry.ENV_REGISTRY[env_id]
    for module in [name for name in sys.modules if name.partition(".")[0] == "mylab"]:
        del sys.modules[module]
