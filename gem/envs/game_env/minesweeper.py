r"""Minesweeper: open every cell without a mine.

Reward: the share of the safe cells that a move opens, 1 in all for the whole board. A mine ends the
game and pays nothing. The mines are laid at the first reveal, outside the 3x3 block around it, so the
first move is always safe; flags change nothing but what may be revealed, so they cannot pay.

The mines are drawn again until :mod:`~gem.envs.game_env.mine_logic` can open the whole board from the first reveal
on, so no guess is ever needed and a loss is a player's mistake. On boards denser than all registered ones
(or on very large ones) such mines may be too rare: after a number of draws the last one stands, and the instructions
promise nothing.
"""

from __future__ import annotations

import functools
import re

from gem.core import ResetNeeded
from gem.envs.game_env.game import Game, Outcome, illegal, in_rows
from gem.envs.game_env.mine_logic import can_be_solved, masks, neighbours

_MOVE = re.compile(r"([a-zA-Z]{1,20})\s+([0-9]{1,18})\s+([0-9]{1,18})")
_MOST_DRAWS = 300
"""Of the mines. Where the instructions promise that no guess is needed, at least one draw in twenty is so."""


class MinesweeperEnv(Game):
    r"""Open cells with ``\boxed{reveal row col}``, mark them with ``\boxed{flag row col}``, both from 0.

    If any size is None, all are drawn at each reset: a square of side n = 5 to 8, n*n // 5 mines, n*n turns.

    Args:
        rows: rows of the board.
        cols: columns of the board.
        num_mines: mines; there must be room for them outside the first move's 3x3 block.
        max_turns: moves, flags included.
    """

    def __init__(
        self,
        rows: int | None = 8,
        cols: int | None = 8,
        num_mines: int | None = 10,
        max_turns: int | None = 20,
    ) -> None:
        super().__init__(max_turns)
        if rows is not None and cols is not None and num_mines is not None:
            if min(rows, cols) < 1:
                raise ValueError(f"rows and cols must be at least 1, got {rows}, {cols}")
            room = rows * cols - min(rows, 3) * min(cols, 3)
            if not 0 <= num_mines <= room:
                raise ValueError(f"a {rows}x{cols} board has room for 0 to {room} mines, got {num_mines}")
        self._take(rows=rows, cols=cols, num_mines=num_mines, max_turns=max_turns)

    @property
    def grid(self) -> tuple[tuple[int, ...], ...]:
        """What each cell holds: -1 for a mine, else how many are around it; all 0 until the mines are laid."""
        counts = self.counts or [0] * len(self.cells)
        return in_rows([-1 if cell in self.mines else count for cell, count in enumerate(counts)], self.cols)

    @property
    def revealed(self) -> tuple[tuple[bool, ...], ...]:
        """Which cells are open."""
        return in_rows([symbol not in ".F" for symbol in self.cells], self.cols)

    @property
    def flags(self) -> tuple[tuple[bool, ...], ...]:
        """Which cells have a flag."""
        return in_rows([symbol == "F" for symbol in self.cells], self.cols)

    @property
    def first_reveal(self) -> bool:
        """Whether no cell was opened yet."""
        return not self.counts

    def deal(self) -> str:
        """Draw the sizes (if they are random); the mines are laid by the first reveal."""
        if None in self._sizes:
            n = self.rng.randint(5, 8)
            self.rows, self.cols, self.num_mines, self.max_turns = n, n, n * n // 5, n * n
        else:
            self.rows, self.cols, self.num_mines, self.max_turns = self._sizes
        self.mines: list[int] = []
        self.counts: list[int] = []  # of the mines around each cell, once they are laid
        self.cells = ["."] * (self.rows * self.cols)  # as shown
        self.left = len(self.cells) - self.num_mines  # safe cells to open
        promise = " After the first one every board can be solved without guessing." if self._needs_no_guess() else ""
        return (
            f"Minesweeper. {self.num_mines} of the {len(self.cells)} cells hide a mine: open all the others. You have "
            f"{self.max_turns} turns. '.' is a closed cell, 'F' a flag, and a digit counts the mines in the eight "
            "cells around. \\boxed{reveal 0 2} opens row 0, column 2; \\boxed{flag 0 2} sets or takes away a flag "
            f"there. A flagged cell cannot be opened.{promise}"
        )

    def parse(self, answer: str) -> tuple[str, int, int] | None:
        """Read a command, a row and a column."""
        match = _MOVE.fullmatch(answer)
        return (match[1].lower(), int(match[2]), int(match[3])) if match else None

    def play(self, move: tuple[str, int, int]) -> Outcome:
        """Open or flag a cell."""
        command, row, col = move
        if command not in ("reveal", "flag"):
            return illegal("The commands are reveal and flag.")
        if row >= self.rows or col >= self.cols:
            return illegal(f"There is no cell {row} {col}.")
        cell = row * self.cols + col
        symbol = self.cells[cell]
        if symbol not in ".F":
            return illegal(f"Cell {row} {col} is open already.")
        if command == "flag":
            self.cells[cell] = "F" if symbol == "." else "."
            return Outcome(f"The flag on {row} {col} is {'set' if symbol == '.' else 'gone'}.")
        if symbol == "F":
            return illegal(f"Cell {row} {col} is flagged: take the flag away first.")
        if not self.counts:
            self._lay_mines(cell)
        if cell in self.mines:
            return Outcome(f"Cell {row} {col} is a mine. You lose.", end="loss")
        opened = self._open(cell)
        self.left -= opened
        reward = opened / (len(self.cells) - self.num_mines)
        if not self.left:
            return Outcome("All safe cells are open. Congratulations! You win.", reward, "win")
        return Outcome(f"You opened {opened} cell{'s' * (opened > 1)}.", reward)

    def get_task_suffix(self) -> str:
        """Draw the board under a header of column numbers."""
        return _template(self.rows, self.cols) % tuple(self.cells)

    def sample_random_action(self, reveal_or_flag: str | None = None) -> str:
        """Return a random legal move; ``"reveal"`` or ``"flag"`` asks for one of the two."""
        if self.over:
            raise ResetNeeded
        return f"\\boxed{{{self.random_move(reveal_or_flag)}}}"

    def random_move(self, command: str | None = None) -> str:
        """Return a reveal, or one time in ten a flag, of a closed cell."""
        closed = [cell for cell, symbol in enumerate(self.cells) if symbol in ".F"]
        plain = [cell for cell in closed if self.cells[cell] == "."]
        reveal = bool(plain) and (self.action_rng.random() < 0.9 if command is None else command == "reveal")
        row, col = divmod(self.action_rng.choice(plain if reveal else closed), self.cols)
        return f"{'reveal' if reveal else 'flag'} {row} {col}"

    def _needs_no_guess(self) -> bool:
        """Return whether mines that need no guess are common enough on boards of this size to be found."""
        cells = len(self.cells)
        return min(self.rows, self.cols) >= 4 and cells <= 400 and self.num_mines * 5 <= cells

    def _lay_mines(self, first: int) -> None:
        around = masks(self.rows, self.cols)
        near = around[first] | 1 << first
        room = [cell for cell in range(len(self.cells)) if not near >> cell & 1]
        for _ in range(_MOST_DRAWS):
            self.mines = sorted(self.rng.sample(room, self.num_mines))
            mines = sum(1 << cell for cell in self.mines)
            self.counts = [(mask & mines).bit_count() for mask in around]
            if can_be_solved(self.rows, self.cols, self.counts, mines, first):
                return

    def _open(self, cell: int) -> int:
        """Open a cell and, where it counts no mine, all around it, and so on; return how many were opened."""
        around = neighbours(self.rows, self.cols)
        opened = 0
        todo = [cell]
        while todo:
            cell = todo.pop()
            if self.cells[cell] == ".":
                self.cells[cell] = str(self.counts[cell])
                opened += 1
                if not self.counts[cell]:
                    todo += around[cell]
        return opened


@functools.lru_cache
def _template(rows: int, cols: int) -> str:
    lines = ["\n  " + "".join(f"{col:>2}" for col in range(cols))]
    lines += [f"{row:>2}" + " %s" * cols for row in range(rows)]
    return "\n".join(lines)
