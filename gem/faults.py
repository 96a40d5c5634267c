"""What protects the caller of an environment, a tool or another foreign function from what it does.

Foreign code may raise anything, return anything, and fork. Whoever calls it turns that into an error of the
environment, and these functions do so without raising themselves: not even the text of an exception can be trusted,
since computing it calls the exception's own ``__str__``.
"""

from __future__ import annotations

import os
import reprlib
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator
from os import _exit  # by name: an environment may replace the attributes of ``os``
from typing import Any, TypeVar

from gem.text import cut_middle

T = TypeVar("T")

ERROR_LENGTH = 4000
"""Characters of an error's text, at most, beside the note that some were left out."""
_EXCERPT_LENGTH = 200
_name_of_type = type.__dict__["__name__"].__get__
"""``type.__name__`` itself, which a metaclass cannot override."""


class EnvironmentFailed(RuntimeError):
    """An environment raised, hung, ended its process, or returned what the contract does not allow."""


def type_name(value: object) -> str:
    """Return the name of a value's type: never raises, is of limited length, and can be encoded.

    >>> type_name(1.5)
    'float'
    """
    return _bounded(_name_of_type(type(value)), _EXCERPT_LENGTH)


def error_message(error: object) -> str:
    """Return the text of an exception: never raises, is of limited length, and can be encoded.

    >>> error_message(ValueError("no data"))
    'no data'
    """
    try:
        text = f"{error}"
    except BaseException as failure:  # noqa: BLE001 (a user's Ctrl-C in here ends what __str__ does, and no more)
        text = f"(its __str__ raised {type_name(failure)})"
    return _bounded(text, ERROR_LENGTH)


def error_text(error: BaseException) -> str:
    """Return the type and the text of an exception; see :func:`error_message`.

    >>> error_text(ValueError("no data"))
    'ValueError: no data'
    """
    return f"{type_name(error)}: {error_message(error)}"


_traceback_of = BaseException.__dict__["__traceback__"].__get__


def raised_at(error: BaseException) -> str:
    """Return where an exception, or the one that it was raised from, was raised: file and line; "" if nobody knows.

    >>> raised_at(ValueError("not raised at all"))
    ''
    """
    trace = _traceback_of(error.__cause__ if error.__cause__ is not None else error)
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    return _bounded(f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}", _EXCERPT_LENGTH)


def excerpt(value: object) -> str:
    """Return the beginning of a value's ``repr``: never raises, is of limited length, and can be encoded.

    >>> excerpt("x" * 1000)
    "'xxxxxxxxxxxx...xxxxxxxxxxxxx'"
    """
    try:
        text = reprlib.repr(value)
    except BaseException:  # noqa: BLE001 (see error_message)
        text = f"<{type_name(value)}>"
    return _bounded(text, _EXCERPT_LENGTH)


def is_from_user(error: BaseException) -> bool:
    """Return whether an exception may be the user's Ctrl-C, which Python raises in the main thread only."""
    return isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()


forks = 0
"""How many forks lie between this process and the one that imported this module first.

To be read as an attribute of the module, since it changes. ``os.getpid()`` would tell a child as well, but is a system
call, and two are needed at every step.
"""


def end_forked_child(depth: int) -> None:
    """End this process if it was forked since :data:`forks` was ``depth``.

    A function that forks and returns in both processes would let the child go on as its caller: step the same
    environments, answer in the same pipes, and wait in the same event loop, which both would disturb.
    """
    if forks != depth:
        _exit(1)


def call_unforked(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Return what a function returns, or raise what it raises, in this process only; see :func:`end_forked_child`."""
    depth = forks
    try:
        return function(*args, **kwargs)
    finally:
        if forks != depth:
            _exit(1)


class Unforked(Coroutine[Any, Any, T]):
    """Runs an awaitable in this process only: a forked child would go on with the event loop.

    It is awaited, or run as a task. It is no generator, which would be one more object to resume at every step, and for
    Python's garbage collector to look at.
    """

    __slots__ = ("_depth", "_steps")

    def __init__(self, awaitable: Awaitable[T]) -> None:
        self._steps: Any = awaitable.__await__()
        self._depth = forks

    def send(self, value: Any) -> Any:
        """Resume it."""
        try:
            return self._steps.send(value)
        finally:
            if forks != self._depth:
                _exit(1)

    def throw(self, *error: Any) -> Any:
        """Resume it with an exception."""
        try:
            return self._steps.throw(*error)
        finally:
            end_forked_child(self._depth)

    def close(self) -> None:
        """End it."""
        try:
            self._steps.close()
        finally:
            end_forked_child(self._depth)

    def __await__(self) -> Generator[Any, Any, T]:
        return self

    def __iter__(self) -> Unforked[T]:
        return self

    def __next__(self) -> Any:
        return self.send(None)


def _count_fork() -> None:
    global forks
    forks += 1


if hasattr(os, "register_at_fork"):  # else the system has no fork
    os.register_at_fork(after_in_child=_count_fork)


def _bounded(text: str, length: int) -> str:
    return cut_middle(text, length).encode("utf-8", "replace").decode()
