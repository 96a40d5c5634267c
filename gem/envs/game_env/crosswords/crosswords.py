r"""Crosswords: fill in a crossword, letter by letter.

Reward: 1 over the number of letters for each right letter, 1 in all. A wrong letter spends the turn, and a crossword
fills three quarters of the turns at most. Trying the alphabet on a cell takes more turns than there are to spare: a
player that does so, the most frequent letters first, earns 0.2 of an easy or hard game and never completes one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from gem.envs.game_env import words
from gem.envs.game_env.game import Game, Outcome, illegal

_MOVE = re.compile(r"([0-9]{1,18})\s+([0-9]{1,18})\s+([a-zA-Z])")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_WIDTH = 3
"""Characters of a cell, as in "  A"; so is the number of its row, but for a blank."""

_TURNS_A_WORD = 6
"""With fewer turns, no crossword can be made that leaves a quarter of them to spare."""

Cell = tuple[int, int]


class CrosswordsEnv(Game):
    r"""Fill a cell with ``\boxed{row col letter}``, both counted from 0.

    If any argument is None, all are drawn at each reset: 3 words, 20 turns, and hardcore or not.

    Args:
        hardcore: rarer words, and long ones.
        max_turns: letters tried; at least a third more than the crossword has cells, if there are 6 a word.
        num_words: words, at most 20.
    """

    def __init__(self, hardcore: bool | None = False, max_turns: int | None = 100, num_words: int | None = 5) -> None:
        super().__init__(max_turns)
        if num_words is not None and not 1 <= num_words <= 20:
            raise ValueError(f"num_words must be 1 to 20, got {num_words}")
        self._take(hardcore=hardcore, max_turns=max_turns, num_words=num_words)

    @property
    def board(self) -> tuple[tuple[str, ...], ...]:
        """What is seen of each cell: a letter, ``_`` for one to fill, ``.`` for none."""
        return tuple(tuple(line[_WIDTH + 1 :: _WIDTH]) for line in self.lines)

    @property
    def total_letter_cells(self) -> int:
        """Cells that have a letter."""
        return self.cells

    @property
    def placed_words(self) -> dict[str, tuple[int, int, str]]:
        """Row, column and direction of each word."""
        return {
            "".join(
                self.solution[clue["row"] + i * clue["down"]][clue["col"] + i * (not clue["down"])]
                for i in range(clue["length"])
            ): (clue["row"], clue["col"], "down" if clue["down"] else "across")
            for clue in self.clues
        }

    @property
    def word_data(self) -> list[dict[str, str]]:
        """Words that may be drawn, and their clues."""
        return [{"word": word, "clue": clue} for word, clue in words.clues(self.hardcore)]

    def deal(self) -> str:
        """Draw the sizes (if they are random) and the crossword."""
        hardcore, self.max_turns, count = self._sizes
        if None in self._sizes:
            hardcore, self.max_turns, count = self.rng.random() < 0.5, 20, 3
        self.hardcore, self.num_words = hardcore, count
        self._construct(words.clues(hardcore), count, room=max(self.max_turns, _TURNS_A_WORD * count) * 3 // 4)
        return (
            f"Crossword. Fill in the letters of {count} words. You have {self.max_turns} turns, a letter each; a wrong "
            "letter is not written down, but spends the turn. '_' is a cell to fill, '.' no cell. Rows and columns are "
            "counted from 0: \\boxed{1 0 A} puts the letter A into row 1, column 0. The clues give the cell in which "
            "a word begins."
        )

    def parse(self, answer: str) -> tuple[int, int, str] | None:
        """Read a row, a column and a letter."""
        match = _MOVE.fullmatch(answer)
        return (int(match[1]), int(match[2]), match[3].upper()) if match else None

    def play(self, move: tuple[int, int, str]) -> Outcome:
        """Compare the letter with the solution."""
        row, col, letter = move
        if row >= len(self.solution) or col >= len(self.solution[0]):
            return illegal(f"There is no cell {row} {col}.")
        right, at = self.solution[row][col], _WIDTH * (col + 1) + 1
        if right == ".":
            return illegal(f"Cell {row} {col} takes no letter.")
        if self.lines[row][at] != "_":
            return illegal(f"Cell {row} {col} is filled already.")
        if letter != right:
            return Outcome(f"{letter} is wrong in cell {row} {col}.")
        self.lines[row] = f"{self.lines[row][:at]}{letter}{self.lines[row][at + 1 :]}"
        self.empty -= 1
        reward = 1 / self.cells
        if not self.empty:
            return Outcome("The crossword is complete. Congratulations! You win.", reward, "win")
        return Outcome(f"{letter} is right in cell {row} {col}.", reward)

    def get_task_suffix(self) -> str:
        """Draw the board under a header of column numbers, and give the clues of the words that are not complete."""
        header = "  " + "".join(f"{col:>{_WIDTH}}" for col in range(len(self.solution[0])))
        clues = [clue["text"] for clue in self.clues if self._is_open(clue)]
        return "\n".join(["", header, *self.lines, *clues])

    def random_move(self) -> str:
        """Return a letter for an empty cell."""
        empty = [
            f"{row} {col}"
            for row, line in enumerate(self.lines)
            for col, symbol in enumerate(line[_WIDTH + 1 :: _WIDTH])
            if symbol == "_"
        ]
        return f"{self.action_rng.choice(empty)} {self.action_rng.choice(_LETTERS)}"

    def _is_open(self, clue: dict[str, Any]) -> bool:
        at = _WIDTH * (clue["col"] + 1) + 1
        if clue["down"]:
            return any(line[at] == "_" for line in self.lines[clue["row"] : clue["row"] + clue["length"]])
        return "_" in self.lines[clue["row"]][at : at + _WIDTH * clue["length"]]

    def _construct(self, entries: tuple[words.Clue, ...], count: int, room: int) -> None:
        """Draw words and cross them, with at most ``room`` cells."""
        letters: dict[Cell, str] = {}
        placed: dict[str, tuple[Cell, bool, str]] = {}
        tries = 0
        while len(placed) < count:
            tries += 1
            if tries % 500 == 0:  # what lies there leaves no room for a further word
                letters, placed = {}, {}
            word, text = self.rng.choice(entries)
            left = count - len(placed) - 1
            new = len(word) - bool(placed)
            if word in placed or len(letters) + new + 3 * left > room:  # a word takes at least three cells more
                continue
            spots = list(_crossings(word, letters)) if letters else [((0, 0), self.rng.random() < 0.5)]
            if spots:
                start, down = self.rng.choice(spots)
                letters.update(zip(_cells(start, down, len(word)), word.upper(), strict=True))
                placed[word] = (start, down, text)

        rows, cols = (range(min(axis), max(axis) + 1) for axis in zip(*letters, strict=True))
        top, first = rows[0], cols[0]
        self.solution = ["".join(letters.get((row, col), ".") for col in cols) for row in rows]
        self.cells = self.empty = len(letters)
        self.lines = [
            f"{row:>2}  " + "  ".join("." if letter == "." else "_" for letter in line)
            for row, line in enumerate(self.solution)
        ]
        starts = sorted({start for start, _, _ in placed.values()})
        self.clues: list[dict[str, Any]] = []
        for word, (start, down, text) in sorted(placed.items(), key=lambda item: (item[1][1], item[1][0])):
            row, col = start[0] - top, start[1] - first
            name = f"{starts.index(start) + 1} {'down' if down else 'across'}"
            line = f"{name}, from row {row}, column {col}, {len(word)} letters: {text}"
            self.clues.append({"text": line, "row": row, "col": col, "down": down, "length": len(word)})


def _cells(start: Cell, down: bool, length: int) -> list[Cell]:
    row, col = start
    return [(row + i, col) if down else (row, col + i) for i in range(length)]


def _crossings(word: str, letters: dict[Cell, str]) -> Iterator[tuple[Cell, bool]]:
    """Yield where a word crosses the others and touches them nowhere else."""
    for i, letter in enumerate(word.upper()):
        for (row, col), other in letters.items():
            if letter == other:
                for down in (False, True):
                    start = (row - i, col) if down else (row, col - i)
                    if _fits(word.upper(), start, down, letters):
                        yield start, down


def _fits(word: str, start: Cell, down: bool, letters: dict[Cell, str]) -> bool:
    row, col = start
    along, aside = ((1, 0), (0, 1)) if down else ((0, 1), (1, 0))
    end = row + along[0] * len(word), col + along[1] * len(word)
    if (row - along[0], col - along[1]) in letters or end in letters:
        return False
    crossed = False
    for letter in word:
        there = letters.get((row, col))
        if there is None:
            if (row + aside[0], col + aside[1]) in letters or (row - aside[0], col - aside[1]) in letters:
                return False
        elif there != letter or crossed:  # two filled cells in a row belong to a word of the same direction
            return False
        crossed = there is not None
        row, col = row + along[0], col + along[1]
    return True
