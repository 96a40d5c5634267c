"""Names of gem-llm that can be imported here, and that say why they cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NoReturn


def refuse(module: str, names: Iterable[str], reason: str) -> Callable[[str], Any]:
    """Return a module's ``__getattr__`` under which some names exist, and raise ``reason`` when they are called.

    So code that only imports them runs, and code that uses them is told what to use instead.

    >>> refuse("old.module", ["Server"], "Use the new one.")("Server")()
    Traceback (most recent call last):
    NotImplementedError: old.module.Server is not supported. Use the new one.

    Args:
        module: the module's name.
        names: classes and functions of it.
        reason: why, and what to use instead.
    """
    known = frozenset(names)

    def look_up(name: str) -> Any:
        if name not in known:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")

        def not_supported(self: Any, *args: Any, **kwargs: Any) -> NoReturn:
            raise NotImplementedError(f"{module}.{name} is not supported. {reason}")

        return type(name, (), {"__init__": not_supported, "__module__": module, "__doc__": reason, "is_refused": True})

    return look_up
