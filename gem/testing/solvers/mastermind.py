"""Mastermind by guessing codes that may still be right."""

from __future__ import annotations

import itertools
import re
from collections.abc import Generator


def solve(observation: str) -> Generator[str, str, None]:
    """Guess the first code that agrees with all answers so far."""
    sizes = re.search(r"code of (\d+) digits from 1 to (\d+); a digit may (not )?appear twice", observation)
    assert sizes, "the task names the sizes"
    length, digits = int(sizes[1]), range(1, int(sizes[2]) + 1)
    codes = list(itertools.permutations(digits, length) if sizes[3] else itertools.product(digits, repeat=length))
    while True:
        guess = codes[0]
        observation = yield f"\\boxed{{{' '.join(map(str, guess))}}}"
        answer = re.search(r"(\d+) black, (\d+) white", observation)
        assert answer, "a guess that may be right is legal"
        black, pegs = int(answer[1]), int(answer[1]) + int(answer[2])
        codes = [code for code in codes if code != guess and _agrees(guess, code, black, pegs)]


def _agrees(guess: tuple[int, ...], code: tuple[int, ...], black: int, pegs: int) -> bool:
    """Return whether the guess would have had this answer if that were the code."""
    if sum(a == b for a, b in zip(guess, code, strict=True)) != black:
        return False
    return sum(min(guess.count(digit), code.count(digit)) for digit in set(guess)) == pegs
