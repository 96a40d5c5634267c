"""The English words that the word games play with, and clues for some of them.

Read from this package's ``data`` folder (its README says where they come from) when first asked for, one file a
length, and then shared by all environments of the process: what is returned cannot be changed.
"""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path
from typing import NamedTuple

COMMON_LENGTHS = range(3, 13)
"""Lengths for which there are common words."""
ACCEPTED_LENGTHS = range(3, 10)
"""Lengths for which there is the larger list."""

_DATA = Path(__file__).with_name("data")
_lock = threading.Lock()


class Clue(NamedTuple):
    """A word, in lower case, and what it means."""

    word: str
    text: str


@cache
def common(length: int) -> tuple[str, ...]:
    """Return the everyday words of a length, sorted: base forms that an adult knows."""
    return _lines(f"common/{length}.txt")


@cache
def accepted(length: int) -> tuple[str, ...]:
    """Return all words of a length, sorted: the common ones, their inflections, and rarer ones."""
    return _lines(f"accepted/{length}.txt")


def is_word(text: str) -> bool:
    """Return whether a text in lower case is among the accepted words of its length."""
    return len(text) in ACCEPTED_LENGTHS and text in _accepted(len(text))


@cache
def clues(hardcore: bool) -> tuple[Clue, ...]:
    """Return words of 3 to 9 letters with a clue each: those that everybody uses, or rarer ones.

    No two words have the same clue.
    """
    lines = _lines("clues-hard.txt" if hardcore else "clues-easy.txt")
    return tuple(Clue(*line.split("\t")) for line in lines)


@cache
def _accepted(length: int) -> frozenset[str]:
    return frozenset(accepted(length))


def _lines(name: str) -> tuple[str, ...]:
    with _lock:  # so that threads which ask first at the same time do not each read it
        return _read(name)


@cache
def _read(name: str) -> tuple[str, ...]:
    return tuple((_DATA / name).read_text(encoding="ascii").splitlines())
