"""Ray and process pools send an exception to where it is waited for by pickling it: ours must arrive as they were."""

import importlib
import inspect
import pickle
import pkgutil

import pytest

import gem
from gem.rollout import Limits
from gem.tasks import Task


def exception_classes():
    """Return all exception classes that the package defines."""
    names = [info.name for info in pkgutil.walk_packages(gem.__path__, "gem.")]
    modules = [importlib.import_module(name) for name in names if not name.endswith("__main__")]
    found = {
        value
        for module in modules
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, BaseException) and value.__module__ == module.__name__
    }
    return sorted(found, key=lambda cls: cls.__qualname__)


ARGUMENTS = {
    "ContextTooSmall": [(Task("game:Wordle-v0", 3), 64, Limits(max_context=32))],
    "CrashLoop": [("ValueError: no data", 3), ("it ended",)],
    "ResetNeeded": [()],
}
"""Of the classes whose arguments are more than a message."""


@pytest.mark.parametrize("cls", exception_classes())
def test_every_exception_survives_pickling(cls):
    for arguments in ARGUMENTS.get(cls.__name__, [("what went wrong",)]):
        error = cls(*arguments)
        error.seen_by = "who caught it"
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is cls
        assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))


def test_all_modules_are_looked_at():
    assert {"ContextTooSmall", "CrashLoop", "ResetNeeded", "EnvironmentFailed"} <= {
        cls.__name__ for cls in exception_classes()
    }
