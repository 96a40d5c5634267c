"""Crosswords by looking the clues up."""

from __future__ import annotations

import re
from collections.abc import Generator

from gem.envs.game_env.words import clues

_CLUE = re.compile(r"^\d+ (across|down), from row (\d+), column (\d+), (\d+) letters: (.+)$", re.MULTILINE)


def solve(observation: str) -> Generator[str, str, None]:
    """Write the words of the clues, one letter per turn."""
    known = {clue.text: clue.word for hardcore in (False, True) for clue in clues(hardcore)}
    letters: dict[tuple[int, int], str] = {}
    for direction, row, col, length, text in _CLUE.findall(observation):
        assert len(known[text]) == int(length), "the clue gives the length"
        for i, letter in enumerate(known[text]):
            down = direction == "down"
            letters[int(row) + i * down, int(col) + i * (not down)] = letter
    for (r, c), letter in letters.items():
        yield f"\\boxed{{{r} {c} {letter}}}"
