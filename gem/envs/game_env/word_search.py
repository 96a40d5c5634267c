r"""WordSearch: find listed words in a grid of letters.

Reward: 1 over the number of words for each word found, 1 in all. A word pays once, and stands in the grid once: the
letters around the words are drawn so that they form no other copy. Lines tried at random earn 0.03 of an easy game and
0.005 of a hard one, as a grid has far more lines than there are turns.
"""

from __future__ import annotations

import re

from gem.envs.game_env import words
from gem.envs.game_env.game import Game, Outcome, illegal

_MOVE = re.compile(r"([0-9]{1,18})\s+([0-9]{1,18})\s+([0-9]{1,18})\s+([0-9]{1,18})")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LENGTHS = {False: (3, 6), True: (7, 12)}
_MOST_WORDS = 20
_WIDTH = 3
"""Characters of a cell, as in "[A]"."""


class WordSearchEnv(Game):
    r"""Give the first and the last letter of a word with ``\boxed{row col row col}``, counted from 0.

    If any argument is None, all are drawn at each reset: 5 words, 20 turns, and hardcore or not.

    Args:
        hardcore: long words (7 to 12 letters instead of 3 to 6) and so a large grid.
        max_turns: lines tried.
        num_words: words, at most 20.
    """

    def __init__(self, hardcore: bool | None = False, max_turns: int | None = 20, num_words: int | None = 5) -> None:
        super().__init__(max_turns)
        if num_words is not None and not 1 <= num_words <= _MOST_WORDS:
            raise ValueError(f"num_words must be 1 to {_MOST_WORDS}, got {num_words}")
        self._take(hardcore=hardcore, max_turns=max_turns, num_words=num_words)

    @property
    def game_board(self) -> tuple[tuple[str, ...], ...]:
        """The letters, row by row."""
        return tuple(map(tuple, self.grid))

    @property
    def placed_words(self) -> dict[str, tuple[int, ...]]:
        """Row and column of each word's first letter and of its last."""
        return {word: tuple(place) for word, place in zip(self.words, self.places, strict=True)}

    @property
    def highlighted_positions(self) -> set[tuple[int, int]]:
        """Row and column of the letters of words that were found."""
        found = [place for word, place in zip(self.words, self.places, strict=True) if word in self.correct_words]
        return {(r, c) for a, b, d, e in found for r in range(a, d + 1) for c in range(b, e + 1)}

    @property
    def word_list(self) -> list[str]:
        """Words that may be drawn."""
        shortest, longest = _LENGTHS[self.hardcore]
        return [word for length in range(shortest, longest + 1) for word in words.common(length)]

    def deal(self) -> str:
        """Draw the number of words (if it is random), the words and the grid; return the instructions."""
        hardcore, self.max_turns, count = self._sizes
        if None in self._sizes:
            hardcore, self.max_turns, count = self.rng.random() < 0.5, 20, 5
        self.hardcore, self.num_words = hardcore, count
        self.words = self._draw_words(hardcore, count)
        n = round(1.5 * max(map(len, self.words)))
        while not self._lay_out(n):
            n += 1
        self.correct_words: list[str] = []
        self.attempts: list[list[int]] = []
        self.lines = [f"{row:>2}  {'  '.join(line)}" for row, line in enumerate(self.grid)]
        return (
            f"Word search. {len(self.words)} word{'s' * (len(self.words) > 1)} are hidden in a grid of {n} rows and "
            f"{n} columns, across (from left to right) or down. You have {self.max_turns} turns to find all of them. "
            "Give the row and column of a word's first letter and of its last letter, counted from 0: "
            f"\\boxed{{1 2 1 {min(n, 6) - 1}}} is row 1 from column 2 to column {min(n, 6) - 1}. You cannot try the "
            "same letters twice. Words you have found are marked with [ ]."
        )

    def parse(self, answer: str) -> list[int] | None:
        """Read two cells."""
        match = _MOVE.fullmatch(answer)
        return [int(number) for number in match.groups()] if match else None

    def play(self, move: list[int]) -> Outcome:
        """Look whether a word is there."""
        if max(move) >= len(self.grid):
            return illegal(f"Rows and columns go from 0 to {len(self.grid) - 1}.")
        if move[0] != move[2] and move[1] != move[3]:
            return illegal("Words go across or down: both cells must be in the same row or column.")
        line = move if move[:2] <= move[2:] else move[2:] + move[:2]
        if line in self.attempts:
            return illegal("You have tried these letters before.")
        self.attempts.append(line)
        if line not in self.places:
            return Outcome(f"There is no word of the list from {line[0]} {line[1]} to {line[2]} {line[3]}.")
        word = self.words[self.places.index(line)]
        self.correct_words.append(word)
        self._mark(line)
        reward = 1 / len(self.words)
        if len(self.correct_words) == len(self.words):
            return Outcome(f"{word} was the last word. Congratulations! You win.", reward, "win")
        return Outcome(f"You found {word}.", reward)

    def get_task_suffix(self) -> str:
        """Draw the grid under a header of column numbers, and list the words that are still to be found."""
        header = "  " + "".join(f"{col:>{_WIDTH}}" for col in range(len(self.grid)))
        rest = [word for word in self.words if word not in self.correct_words]
        lines = ["", header, *self.lines, *([f"Words to find: {', '.join(rest)}"] if rest else [])]
        return "\n".join(lines)

    def random_move(self) -> str:
        """Return a line that was not tried yet: a word's, if chance finds no other."""
        n = len(self.grid)
        for _ in range(100):
            at, start, end = self.action_rng.choices(range(n), k=3)
            start, end = min(start, end), max(start, end)
            line = [at, start, at, end] if self.action_rng.random() < 0.5 else [start, at, end, at]
            if line not in self.attempts:
                break
        else:
            line = next(place for place in self.places if place not in self.attempts)
        return " ".join(map(str, line))

    def _draw_words(self, hardcore: bool, count: int) -> list[str]:
        """Draw words of which none is in another, as each must be in the grid once."""
        shortest, longest = _LENGTHS[hardcore]
        lists = [words.common(length) for length in range(shortest, longest + 1)]
        sizes = [len(each) for each in lists]
        drawn: list[str] = []
        while len(drawn) < count:
            word = self.rng.choice(self.rng.choices(lists, sizes)[0]).upper()
            if not any(word in other or other in word for other in drawn):
                drawn.append(word)
        return drawn

    def _lay_out(self, n: int) -> bool:
        """Put the words into a grid of side n, long ones first; return False if one has no place or is there twice."""
        cells = [""] * (n * n)
        places: dict[str, list[int]] = {}
        for word in sorted(self.words, key=len, reverse=True):
            for _ in range(200):
                step, other = (1, n) if self.rng.random() < 0.5 else (n, 1)
                at, along = self.rng.randrange(n), self.rng.randrange(n - len(word) + 1)
                start = at * other + along * step
                line = slice(start, start + len(word) * step, step)
                if all(not old or old == new for old, new in zip(cells[line], word, strict=True)):
                    break
            else:
                return False
            end = start + (len(word) - 1) * step
            cells[line] = word
            places[word] = [*divmod(start, n), *divmod(end, n)]
        filler = self.rng.choices(_LETTERS, k=n * n)
        cells = [old or new for old, new in zip(cells, filler, strict=True)]
        self.grid = ["".join(cells[row * n : (row + 1) * n]) for row in range(n)]
        self.places = [places[word] for word in self.words]
        text = "\n".join(self.grid + ["".join(cells[col::n]) for col in range(n)])
        return all(text.find(word) == text.rfind(word) for word in self.words)

    def _mark(self, line: list[int]) -> None:
        row, col, last_row, last_col = line
        for r in range(row, last_row + 1):
            marked = "".join(f"[{letter}]" for letter in self.grid[r][col : last_col + 1])
            start = _WIDTH * (col + 1)
            self.lines[r] = self.lines[r][:start] + marked + self.lines[r][start + len(marked) :]
