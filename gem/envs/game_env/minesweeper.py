r"""Minesweeper: open every cell without a mine.

Reward: the share of the safe cells that a move opens, 1 in all for the whole board. A mine ends the
game and pays nothing. The mines are laid at the first reveal, outside the 3x3 block around it, so the
first move is always safe; flags change nothing but what may be revealed, so they cannot pay.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from gem.envs.game_env.game import Game, Outcome, illegal

_MOVE = re.compile(r"([a-zA-Z]{1,20})\s+([0-9]{1,18})\s+([0-9]{1,18})")


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
        self._sizes: tuple[Any, ...] = (rows, cols, num_mines, max_turns)

    def deal(self) -> str:
        """Draw the sizes (if they are random); the mines are laid by the first reveal."""
        if None in self._sizes:
            n = self.rng.randint(5, 8)
            self.rows, self.cols, self.num_mines, self.max_turns = n, n, n * n // 5, n * n
        else:
            self.rows, self.cols, self.num_mines, self.max_turns = self._sizes
        cells = self.rows * self.cols
        self.mines: list[int] = []
        self.laid = False
        self.opened = [False] * cells
        self.flagged = [False] * cells
        return (
            f"Minesweeper. {self.num_mines} of the {cells} cells hide a mine: open all the others. You have "
            f"{self.max_turns} turns. '.' is a closed cell, 'F' a flag, and a digit counts the mines in the eight "
            "cells around. \\boxed{reveal 0 2} opens row 0, column 2; \\boxed{flag 0 2} sets or takes away a flag "
            "there. A flagged cell cannot be opened."
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
        if self.opened[cell]:
            return illegal(f"Cell {row} {col} is open already.")
        if command == "flag":
            self.flagged[cell] = not self.flagged[cell]
            return Outcome(f"The flag on {row} {col} is {'set' if self.flagged[cell] else 'gone'}.")
        if self.flagged[cell]:
            return illegal(f"Cell {row} {col} is flagged: take the flag away first.")
        if not self.laid:
            self._lay_mines(cell)
        if cell in self.mines:
            return Outcome(f"Cell {row} {col} is a mine. You lose.", end="loss")
        opened = self._open(cell)
        safe = len(self.opened) - self.num_mines
        if sum(self.opened) == safe:
            return Outcome("All safe cells are open. You win.", opened / safe, "win")
        return Outcome(f"You opened {opened} cell{'s' * (opened > 1)}.", opened / safe)

    def show(self) -> str:
        """Draw the board under a header of column numbers."""
        lines = ["\n  " + "".join(f"{col:>2}" for col in range(self.cols))]
        for row in range(self.rows):
            cells = range(row * self.cols, (row + 1) * self.cols)
            lines.append(f"{row:>2}" + "".join(f" {self._symbol(cell)}" for cell in cells))
        return "\n".join(lines)

    def random_move(self) -> str:
        """Return a reveal, or one time in ten a flag, of a closed cell."""
        closed = [cell for cell, is_open in enumerate(self.opened) if not is_open]
        plain = [cell for cell in closed if not self.flagged[cell]]
        reveal = bool(plain) and self.action_rng.random() < 0.9
        row, col = divmod(self.action_rng.choice(plain if reveal else closed), self.cols)
        return f"{'reveal' if reveal else 'flag'} {row} {col}"

    def _symbol(self, cell: int) -> str:
        if self.opened[cell]:
            return str(self._count(cell))
        return "F" if self.flagged[cell] else "."

    def _around(self, cell: int) -> Iterator[int]:
        row, col = divmod(cell, self.cols)
        for r in range(max(0, row - 1), min(self.rows, row + 2)):
            for c in range(max(0, col - 1), min(self.cols, col + 2)):
                if (r, c) != (row, col):
                    yield r * self.cols + c

    def _count(self, cell: int) -> int:
        return sum(neighbour in self.mines for neighbour in self._around(cell))

    def _lay_mines(self, first: int) -> None:
        safe = {first, *self._around(first)}
        self.mines = sorted(self.rng.sample([c for c in range(len(self.opened)) if c not in safe], self.num_mines))
        self.laid = True

    def _open(self, cell: int) -> int:
        """Open a cell and, where it counts no mine, all around it, and so on; return how many were opened."""
        before = sum(self.opened)
        self.opened[cell] = True
        todo = [cell]
        while todo:
            cell = todo.pop()
            if self._count(cell) == 0:
                new = [n for n in self._around(cell) if not self.opened[n] and not self.flagged[n]]
                for n in new:
                    self.opened[n] = True
                todo += new
        return sum(self.opened) - before
