"""Sudoku by filling a cell for which one digit is left."""

from __future__ import annotations

import re
from collections.abc import Generator


def solve(observation: str) -> Generator[str, str, None]:
    """Fill the cells that the rules force, one by one."""
    while True:
        rows = [re.findall(r"[.\d]", line.split("|", 1)[1]) for line in observation.splitlines() if "|" in line]
        row, col, digit = _forced([[0 if cell == "." else int(cell) for cell in row] for row in rows[1:]])
        observation = yield f"\\boxed{{{row + 1} {col + 1} {digit}}}"


def _forced(grid: list[list[int]]) -> tuple[int, int, int]:
    """Return a cell and its digit: no other digit fits the cell, or the digit no other cell of a unit."""
    scale = len(grid)
    side = 2 if scale == 4 else 3
    cells = [(r, c) for r in range(scale) for c in range(scale)]
    units = [[(i, j) for j in range(scale)] for i in range(scale)]
    units += [[(j, i) for j in range(scale)] for i in range(scale)]
    units += [[(r, c) for r, c in cells if r // side * side + c // side == i] for i in range(scale)]
    fits = {cell: set(range(1, scale + 1)) for cell in cells if not grid[cell[0]][cell[1]]}
    for unit in units:
        digits = {grid[r][c] for r, c in unit}
        for cell in unit:
            if cell in fits:
                fits[cell] -= digits
    for (row, col), digits in fits.items():
        if len(digits) == 1:
            return row, col, digits.pop()
    for unit in units:
        for digit in range(1, scale + 1):
            places = [cell for cell in unit if digit in fits.get(cell, ())]
            if len(places) == 1:
                return *places[0], digit
    raise AssertionError("no cell is forced")
