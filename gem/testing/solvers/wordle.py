"""Wordle by the guess that leaves the fewest words on average."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Generator
from functools import lru_cache

from gem.envs.game_env.wordle import mark
from gem.envs.game_env.words import common

_GUESSES = 60
"""Guesses that are compared, so that a turn takes milliseconds."""
_SECRETS = 100
"""Words on which they are compared."""


def solve(observation: str) -> Generator[str, str, None]:
    """Guess a word that splits those still possible, and then one of them."""
    length = re.search(r"(\d+) letters", observation)
    assert length, "the task names the length"
    words = candidates = common(int(length[1]))
    while True:
        guess = next_guess(candidates, words)
        observation = yield f"\\boxed{{{guess}}}"
        marks = re.search(r"^[GYX]( [GYX])+$", observation, re.MULTILINE)
        if not marks:  # the guess was not accepted: never so for a common word
            return
        seen = marks[0].replace(" ", "")
        candidates = tuple(word for word in candidates if word != guess and mark(guess, word) == seen)


@lru_cache(maxsize=4096)
def next_guess(candidates: tuple[str, ...], words: tuple[str, ...]) -> str:
    """Return the best of some guesses, possible words or not."""
    if len(candidates) <= 2:
        return candidates[0]
    secrets = _some(candidates, _SECRETS)
    guesses = _some(candidates, _GUESSES // 2) + _some(words, _GUESSES // 2)
    return min(guesses, key=lambda guess: (_left(guess, secrets), guess not in candidates))


def _left(guess: str, secrets: tuple[str, ...]) -> int:
    """Return the sum over the secrets of the secrets that the guess would leave."""
    return sum(size * size for size in Counter(mark(guess, secret) for secret in secrets if secret != guess).values())


def _some(words: tuple[str, ...], count: int) -> tuple[str, ...]:
    """Return about ``count`` of the words, evenly spread."""
    return words[:: -(-len(words) // count)]
