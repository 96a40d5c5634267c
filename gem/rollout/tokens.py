"""Tokens that are stored once.

Every prompt of an append-only episode begins with all that came before it, so an episode of n turns whose prompts were
lists would store its first tokens n times. Here they are *views*: parts of one array, to which what follows is
appended. A view is a read-only sequence. It has the same items for ever, whatever is appended behind it.

>>> prompt = Tokens([1, 2, 3])
>>> seen = prompt.extended([10, 11])  # what the model sampled
>>> response = seen.part(len(prompt))
>>> following = seen.extended([4])  # the bridge
>>> prompt, response, following
(Tokens([1, 2, 3]), Tokens([10, 11]), Tokens([1, 2, 3, 10, 11, 4]))
>>> following == [1, 2, 3, 10, 11, 4], following[1:3]
(True, [2, 3])
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar, overload

import numpy as np

N = TypeVar("N", int, float)

_SHOWN = 20
"""Items that a view's ``repr`` shows."""


class _View(Sequence[N]):
    """A part of an array, as a read-only sequence that compares and adds up like a list."""

    __slots__ = ("_array", "_start", "_stop")
    _typecode: ClassVar[str]

    def __init__(self, values: Iterable[N] = ()) -> None:
        self._array: array[Any] = array(self._typecode, values)
        self._start, self._stop = 0, len(self._array)

    def tolist(self) -> list[N]:
        """Return the items as a list of their own."""
        return self._array[self._start : self._stop].tolist()

    def __len__(self) -> int:
        return self._stop - self._start

    @overload
    def __getitem__(self, key: int) -> N: ...
    @overload
    def __getitem__(self, key: slice) -> list[N]: ...
    def __getitem__(self, key: int | slice) -> N | list[N]:
        places = range(self._start, self._stop)[key]
        if isinstance(places, int):
            return self._array[places]
        if places.step == 1:
            return self._array[places.start : places.stop].tolist()
        return [self._array[place] for place in places]

    def __iter__(self) -> Iterator[N]:
        return iter(self._array[self._start : self._stop])

    def __eq__(self, other: object) -> bool:
        if isinstance(other, _View):
            same = self._array is other._array and (self._start, self._stop) == (other._start, other._stop)
            return same or (self._array[self._start : self._stop] == other._array[other._start : other._stop])
        return self.tolist() == other if isinstance(other, list) else NotImplemented

    __hash__ = None  # type: ignore[assignment] # like a list

    def __add__(self, other: Iterable[N]) -> list[N]:
        return self.tolist() + list(other)

    def __radd__(self, other: Iterable[N]) -> list[N]:
        return list(other) + self.tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return a copy: an array that numpy looks into could not be appended to."""
        return np.array(self._array[self._start : self._stop], dtype=dtype)

    def __repr__(self) -> str:
        # Short, since an episode's is that of all its prompts, and asyncio asks for it whenever a run has ended.
        more = f" and {len(self) - _SHOWN} more" if len(self) > _SHOWN else ""
        return f"{type(self).__name__}({self[:_SHOWN]}{more})"


class Tokens(_View[int]):
    """Token ids: a part of what an episode has stored.

    Args:
        values: ids, which are copied.
    """

    __slots__ = ()
    _typecode = "q"

    def part(self, start: int, stop: int | None = None) -> Tokens:
        """Return a view of a part of this one; places are counted from its start, and are not negative."""
        end = self._stop if stop is None else min(self._start + stop, self._stop)
        return _tokens(self._array, min(self._start + start, end), end)

    def extended(self, ids: Iterable[int]) -> Tokens:
        """Return these tokens and more behind them.

        Only the new ones are stored; not even they if they are stored there already, as a view of the same array. Where
        something else was appended before, all are stored anew.
        """
        if type(ids) is Tokens and ids._array is self._array and ids._start == self._stop:
            return _tokens(self._array, self._start, ids._stop)
        if self._stop == len(self._array):
            if type(ids) is list:
                self._array.fromlist(ids)  # twice as fast
            else:
                self._array.extend(ids)
            return _tokens(self._array, self._start, len(self._array))
        return Tokens(self + ids)


def _tokens(values: array[Any], start: int, stop: int) -> Tokens:
    view = Tokens.__new__(Tokens)
    view._array, view._start, view._stop = values, start, stop
    return view


def bridge_between(prompt: Sequence[int], response: Sequence[int], following: Sequence[int]) -> list[int] | None:
    """Return what the following prompt has after a prompt and its response; None if it does not begin with them.

    It takes the time of what it returns if all three are parts of one array.
    """
    seen = len(prompt) + len(response)
    if not _is_one_run(prompt, response, following) and list(following[:seen]) != [*prompt, *response]:
        return None
    return list(following[seen:])


def _is_one_run(prompt: Sequence[int], response: Sequence[int], following: Sequence[int]) -> bool:
    if not (isinstance(prompt, Tokens) and isinstance(response, Tokens) and isinstance(following, Tokens)):
        return False
    return (
        prompt._array is response._array is following._array
        and prompt._start == following._start
        and prompt._stop == response._start
        and response._stop <= following._stop
    )


class Logprobs(_View[float]):
    """Log-probabilities, a fifth of the size of a list of them.

    Args:
        values: floats, which are copied.
    """

    __slots__ = ()
    _typecode = "d"
