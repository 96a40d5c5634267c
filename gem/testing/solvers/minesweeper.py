"""Minesweeper by proof."""

from __future__ import annotations

import re
from collections.abc import Generator

from gem.envs.game_env.mine_logic import Deduction, cells_of


def solve(observation: str) -> Generator[str, str, None]:
    """Open what is proven safe; where nothing is, the first closed cell that is no proven mine."""
    num_mines = re.search(r"(\d+) of the \d+ cells", observation)
    assert num_mines, "the task names the mines"
    board = _read(observation)
    rows, cols = len(board), len(board[0])
    deduction = Deduction(rows, cols, int(num_mines[1]))
    row, col = rows // 2, cols // 2
    opened = 0
    while True:
        observation = yield f"\\boxed{{reveal {row} {col}}}"
        symbols = [symbol for line in _read(observation) for symbol in line]
        numbers = [int(symbol) if symbol.isdigit() else -1 for symbol in symbols]
        new = sum(1 << cell for cell, number in enumerate(numbers) if number >= 0) & ~opened
        opened |= new
        deduction.open(new, numbers)
        safe = cells_of(deduction.deduce())
        guesses = [cell for cell, symbol in enumerate(symbols) if symbol == "." and not deduction.mines >> cell & 1]
        row, col = divmod((safe or guesses)[0], cols)


def _read(observation: str) -> list[list[str]]:
    """Return the symbols of the board, which follows a line of text and a header, without the rows' numbers."""
    return [line.split()[1:] for line in observation.splitlines()[2:]]
