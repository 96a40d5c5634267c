"""Seeds, and the episodes that an environment begins without being given one."""

from __future__ import annotations

import hashlib
import operator
import os
import struct
from typing import Any

IRREPRODUCIBLE = (
    "%s begins with another observation when it is reset with the same seed again: the members of a group would have "
    "different tasks, and no run could be repeated. Draw from self.rng, not from random or numpy.random."
)
"""A warning about an environment, with a place for its name."""

_ROUNDS = 8


def check_seed(seed: Any) -> int | None:
    """Return ``seed`` as an ``int``, or None for None.

    Raises:
        TypeError: it is not an integer (a bool, a float and a string are not).
        ValueError: it is negative.
    """
    if seed is None:
        return None
    if type(seed).__name__ in ("bool", "bool_") or not hasattr(seed, "__index__"):  # bool_ is numpy's
        raise TypeError(f"seed must be a non-negative integer or None, got {seed!r} ({type(seed).__name__})")
    value = operator.index(seed)
    if value < 0:
        raise ValueError(f"seed must be a non-negative integer or None, got {value}")
    return value


class EpisodeSeeds:
    """What ``reset()`` without a seed begins, of one environment.

    It is not part of a saved state, so an environment that is put into another's state plays that episode to its end
    and then goes on with episodes of its own. ``copy.deepcopy`` gives the copy episodes of its own, too, which the
    original's seed fixes. ``pickle`` moves it as it is.

    >>> seeds = EpisodeSeeds(7)
    >>> seeds.draw() == EpisodeSeeds(7).draw(), seeds.draw() == seeds.draw()
    (True, False)

    Args:
        key: what fixes all that follows, such as the last seed that the environment was given; None takes it from the
            operating system.

    Attributes:
        epoch: how often :meth:`next_question` has asked every question since it began.
    """

    __slots__ = ("_copies", "_drawn", "_first", "_in_order", "_key", "_next", "_position", "epoch")

    def __init__(self, key: int | str | None = None) -> None:
        self._key = str(key) if key is not None else os.urandom(16).hex()
        self._drawn = 0
        self._next: list[int] = []
        self._copies = 0
        self._first: int | None = None  # the question with which this pass was begun
        self._in_order = False
        self._position = 0
        self.epoch = 0

    def draw(self) -> int:
        """Return the seed of the next episode."""
        if not self._next:  # eight at a time: many games reset every few steps of a microsecond each
            digest = hashlib.blake2b(f"{self._key} episodes {self._drawn}".encode(), digest_size=64).digest()
            self._next = list(struct.unpack("<8Q", digest))
            self._drawn += 8
        return self._next.pop()

    def next_question(self, size: int, in_order: bool = False) -> int:
        """Return the index of the next question of ``size``: each once a pass, then each once again.

        Args:
            size: how many questions there are.
            in_order: ask them in order; otherwise each pass has another order.
        """
        self._in_order = in_order
        if self._position >= size:
            self.epoch += 1
            self._position, self._first = 0, None
        position = self._position
        self._position += 1
        if in_order:
            return position
        order = f"{self._key} pass {self.epoch}"
        if position == 0 or self._first is None:
            return shuffled(position, size, order)
        question = shuffled(position, size, order)  # the first question has changed its place with another
        return shuffled(0, size, order) if question == self._first else question

    @property
    def is_in_order(self) -> bool:
        """Whether questions are asked in order."""
        return self._in_order

    def begin(self) -> None:
        """Begin again with the passes, since there are other questions."""
        self.epoch, self._position, self._first = 0, 0, None

    def begin_pass(self, question: int, in_order: bool = False) -> None:
        """Begin a pass with a question that was asked for; :meth:`next_question` goes on with the others."""
        self._in_order = in_order
        self._first = question
        self._position = question + 1 if in_order else 1

    def __deepcopy__(self, memo: dict[int, Any]) -> EpisodeSeeds:
        """Return what another environment goes on with: other episodes, or the same questions if they are in order."""
        self._copies += 1
        other = EpisodeSeeds(f"{self._key} copy {self._copies}")
        other.epoch = self.epoch
        if self._in_order:
            other._in_order, other._position = True, self._position
        return other


def shuffled(position: int, size: int, key: str) -> int:
    """Return what stands at a position of ``range(size)`` in an order that ``key`` fixes.

    It takes the same time, and no memory, whatever the size: a Feistel network permutes the numbers of an even count
    of bits, and is applied again to what it takes out of the range (https://doi.org/10.1007/3-540-45760-7_9, "cycle
    walking").

    >>> sorted(shuffled(i, 5, "any key") for i in range(5))
    [0, 1, 2, 3, 4]
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = position >> half, position & mask
        for number in range(_ROUNDS):
            left, right = right, left ^ (_hash(f"{key} {number} {right}") & mask)
        position = left << half | right
        if position < size:
            return position


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")
