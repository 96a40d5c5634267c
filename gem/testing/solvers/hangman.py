"""Hangman by the letter that splits the words still possible best."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Generator, Sequence
from functools import lru_cache
from string import ascii_lowercase

from gem.envs.game_env.words import accepted, common


def solve(observation: str) -> Generator[str, str, None]:
    """Guess letters until two words at most are possible, then the words."""
    length = re.search(r"(\d+) letters", observation)
    assert length, "the task names the length"
    words = accepted if "rare" in observation else common
    candidates, guessed = words(int(length[1])), ""
    while True:
        guess = next_guess(candidates, guessed)
        observation = yield f"\\boxed{{{guess}}}"
        board = re.search(r"^Word: (.+)$", observation, re.MULTILINE)
        assert board, "the word is shown"
        shown = board[1].lower().split()
        if len(guess) > 1:
            candidates = tuple(word for word in candidates if word != guess)
        else:
            guessed += guess
            at = [i for i, letter in enumerate(shown) if letter == guess]
            candidates = tuple(word for word in candidates if _places(word, guess) == at)


def wins(secret: str, words: Sequence[str], turns: int) -> bool:
    """Return whether the solver finds a secret that it knows to be one of the words within the turns."""
    candidates, guessed = tuple(words), ""
    for _ in range(turns):
        guess = next_guess(candidates, guessed)
        if guess == secret:
            return True
        if len(guess) > 1:
            candidates = tuple(word for word in candidates if word != guess)
        else:
            guessed += guess
            candidates = tuple(word for word in candidates if _places(word, guess) == _places(secret, guess))
            if set(secret) <= set(guessed):
                return True
    return False


@lru_cache(maxsize=4096)
def next_guess(candidates: tuple[str, ...], guessed: str) -> str:
    """Return one of two words, or the letter that leaves the fewest words on average."""
    if len(candidates) <= 2:
        return candidates[0]
    return min((letter for letter in ascii_lowercase if letter not in guessed), key=lambda c: _left(candidates, c))


def _left(candidates: tuple[str, ...], letter: str) -> int:
    """Return the sum over the candidates of the candidates that are left if it is the one."""
    has = [word for word in candidates if letter in word]
    sizes = Counter(tuple(_places(word, letter)) for word in has)
    return (len(candidates) - len(has)) ** 2 + sum(size * size for size in sizes.values())


def _places(word: str, letter: str) -> list[int]:
    return [i for i, other in enumerate(word) if other == letter]
