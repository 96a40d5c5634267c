r"""Sudoku: fill a grid so that no digit repeats in a row, a column or a box.

Reward: a right digit pays its share of the empty cells, 1 in all for the full grid. The solution is unique, so a
digit that breaks no rule at sight and yet is not the solution's is wrong: it is a legal move that pays nothing and
leaves the cell empty. Trying one digit after the other finds the right one, but each try spends a turn.

A puzzle is made from a full grid by emptying cells one by one, and only a cell whose digit the rest of the grid
forces: no other digit fits it, or the digit fits no other cell of its row, column or box. Refilled in the opposite
order each cell has one possible digit, so the solution is unique, and it can be found without a guess.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Sequence
from typing import NamedTuple

from gem.envs.game_env.game import Game, Outcome, illegal, in_rows

_MOVE = re.compile(r"(-?[0-9]{1,18})(?:\s*,\s*|\s+)(-?[0-9]{1,18})(?:\s*,\s*|\s+)(-?[0-9]{1,18})")
_RANDOM_SIZES = ((4, 10, 15), (9, 50, 50))
_MOST_CLUES = {4: 12, 9: 51}
"""By scale: more cells can be emptied in too few grids, which would take long to draw."""
_SYMBOLS = ".123456789"


class SudokuEnv(Game):
    r"""Fill a cell with ``\boxed{row col digit}``, all from 1.

    If any of the sizes is None, all three are drawn at each reset: (4, 10, 15) or (9, 50, 50) for scale, clues and
    turns.

    Args:
        clues: cells that are *empty* at the start, in spite of the name, which is published: at most 12 of 4x4, 51 of
            9x9 (a reset with 51 takes some 20 ms, one with 49 about 1 ms).
        max_turns: moves. With fewer than there are empty cells the grid cannot be filled.
        scale: rows, columns and digits: 4 or 9.
        n: rows, and columns, of a box, in the place of ``scale``: 2 or 3.
    """

    def __init__(
        self, clues: int | None = 30, max_turns: int | None = 100, scale: int | None = 9, n: int | None = None
    ) -> None:
        super().__init__(max_turns)
        scale = scale if n is None else n * n
        if scale is not None and scale not in _MOST_CLUES:
            raise ValueError(f"scale must be 4 or 9, got {scale}")
        if clues is not None and scale is not None and not 1 <= clues <= _MOST_CLUES[scale]:
            raise ValueError(f"clues must be 1 to {_MOST_CLUES[scale]} for a {scale}x{scale} grid, got {clues}")
        self._take(scale=scale, clues=clues, max_turns=max_turns)

    @property
    def board(self) -> tuple[tuple[int, ...], ...]:
        """The digits, row by row; 0 is an empty cell."""
        return in_rows(self.cells, self.scale)

    @property
    def full_grid(self) -> tuple[tuple[int, ...], ...]:
        """The solution, row by row."""
        return in_rows(self.solution, self.scale)

    def is_safe(self, grid: Sequence[Sequence[int]], row: int, col: int, num: int) -> bool:
        """Return whether a digit stands in no other cell of a cell's row, column and box; counted from 0."""
        units = _layout(self.scale).units_of[row * self.scale + col]
        return all(grid[other // self.scale][other % self.scale] != num for unit in units for other in unit)

    def deal(self) -> str:
        """Draw the sizes (if they are random) and the puzzle."""
        sizes = self.rng.choice(_RANDOM_SIZES) if None in self._sizes else self._sizes
        self.scale, self.clues, self.max_turns = sizes
        self.solution, self.cells = draw_puzzle(self.rng, self.scale, self.clues)
        self.init_num_empty = self.clues
        boxes = "four 2x2" if self.scale == 4 else "nine 3x3"
        return (
            f"Sudoku. Fill the empty cells (.) of this {self.scale}x{self.scale} grid with digits from 1 to "
            f"{self.scale}, so that no digit repeats in a row, in a column or in one of the {boxes} boxes. There is "
            f"one solution. You have {self.max_turns} turns for the {self.clues} empty cells, one cell per turn. "
            "\\boxed{1 2 3} puts 3 into row 1, column 2; rows and columns are numbered from 1."
        )

    def parse(self, answer: str) -> list[int] | None:
        """Read three whole numbers with blanks or commas between them."""
        match = _MOVE.fullmatch(answer)
        return [int(number) for number in match.groups()] if match else None

    def play(self, move: list[int]) -> Outcome:
        """Fill a cell if the digit is right."""
        row, col, digit = move
        if not (1 <= row <= self.scale and 1 <= col <= self.scale):
            return illegal(f"There is no cell {row} {col}.")
        if not 1 <= digit <= self.scale:
            return illegal(f"The digits go from 1 to {self.scale}.")
        cell = (row - 1) * self.scale + col - 1
        if self.cells[cell]:
            return illegal(f"Row {row}, column {col} holds {self.cells[cell]} already.")
        if self.solution[cell] == digit:
            self.cells[cell] = digit
            if 0 not in self.cells:
                return Outcome("All cells are filled. Congratulations! You win.", 1 / self.init_num_empty, "win")
            return Outcome(f"{digit} is right at row {row}, column {col}.", 1 / self.init_num_empty)
        for name, unit in zip(("row", "column", "box"), _layout(self.scale).units_of[cell], strict=True):
            if any(self.cells[other] == digit for other in unit):
                return illegal(f"{digit} stands in the same {name} as row {row}, column {col} already.")
        return Outcome(f"{digit} is not the digit at row {row}, column {col}. The cell stays empty.")

    def get_task_suffix(self) -> str:
        """Draw the grid with its boxes apart, a header of column numbers, and the rows' numbers."""
        return _layout(self.scale).template % tuple([_SYMBOLS[digit] for digit in self.cells])

    def random_move(self) -> str:
        """Return a digit for an empty cell that breaks no rule at sight; it may be wrong."""
        cell = self.action_rng.choice([cell for cell, digit in enumerate(self.cells) if not digit])
        near = {self.cells[other] for unit in _layout(self.scale).units_of[cell] for other in unit}
        digit = self.action_rng.choice([digit for digit in range(1, self.scale + 1) if digit not in near])
        return f"{cell // self.scale + 1} {cell % self.scale + 1} {digit}"


class _Layout(NamedTuple):
    """What depends on the size alone.

    Attributes:
        units_of: for each cell the other cells of its row, its column and its box.
        places: for each cell its row, column and box.
        template: of the picture, with a ``%s`` a cell.
    """

    units_of: tuple[tuple[tuple[int, ...], ...], ...]
    places: tuple[tuple[int, int, int], ...]
    template: str


@functools.lru_cache
def _layout(scale: int) -> _Layout:
    side = 2 if scale == 4 else 3
    cells = range(scale**2)
    places = tuple((c // scale, c % scale, c // scale // side * side + c % scale // side) for c in cells)
    units_of = tuple(
        tuple(
            tuple(other for other in cells if other != cell and places[other][i] == places[cell][i]) for i in range(3)
        )
        for cell in cells
    )
    blocks = [" ".join(["{}"] * side)] * side
    line = "\n{} | " + " | ".join(blocks)
    rule = "\n--+-" + "-+-".join(["-" * (2 * side - 1)] * side)
    template = line.format(" ", *range(1, scale + 1))
    for row in range(scale):
        template += (rule if row % side == 0 else "") + line.format(row + 1, *["%s"] * scale)
    return _Layout(units_of, places, template)


def draw_puzzle(rng: random.Random, scale: int, empties: int) -> tuple[list[int], list[int]]:
    """Draw a puzzle with a unique solution.

    Returns:
        The full grid and the one with 0 in the empty cells, both row by row.
    """
    while True:
        solution = _draw_grid(rng, scale)
        board = _empty_cells(rng, scale, solution, empties)
        if board:
            return solution, board


def _draw_grid(rng: random.Random, scale: int) -> list[int]:
    """Fill a grid by a search that tries the digits of each cell in random order."""
    while True:
        # A search that went wrong early may take very long: give it up, and begin another.
        grid = _search_grid(rng, scale, tries=scale**2 * 4)
        if grid:
            return grid


def _search_grid(rng: random.Random, scale: int, tries: int) -> list[int]:
    """Fill a grid cell by cell; return an empty list if that takes more than ``tries`` digits."""
    places = _layout(scale).places
    rows, cols, boxes = [0] * scale, [0] * scale, [0] * scale  # digits in each, as bits
    bits = [1 << i for i in range(scale)]
    grid: list[int] = []
    choices: list[list[int]] = []  # what is left to try in each cell up to the present one
    while len(grid) < len(places):
        row, col, box = places[len(grid)]
        if len(choices) == len(grid):
            taken = rows[row] | cols[col] | boxes[box]
            choices.append([bit for bit in bits if not bit & taken])
            rng.shuffle(choices[-1])
        if choices[-1]:
            if tries == 0:
                return []
            tries -= 1
            bit = choices[-1].pop()
            grid.append(bit)
        else:  # no digit fits here: take the one before back
            choices.pop()
            bit = grid.pop()
            row, col, box = places[len(grid)]
        rows[row] ^= bit
        cols[col] ^= bit
        boxes[box] ^= bit
    return [bit.bit_length() for bit in grid]


def _empty_cells(rng: random.Random, scale: int, solution: list[int], empties: int) -> list[int]:
    """Empty cells, each forced by those that remain; return [] if so many cannot be."""
    units_of, places, _ = _layout(scale)
    everything = (1 << scale) - 1
    rows, cols, boxes = [everything] * scale, [everything] * scale, [everything] * scale  # digits in each, as bits
    board = list(solution)
    order = list(range(len(board)))
    rng.shuffle(order)
    for cell in order:  # once is enough: a cell that must stay now must stay later, when less is known
        row, col, box = places[cell]
        bit = 1 << solution[cell] - 1
        board[cell] = 0
        rows[row] ^= bit
        cols[col] ^= bit
        boxes[box] ^= bit

        def fits(other: int, bit: int = bit) -> bool:
            r, c, b = places[other]
            return not (board[other] or (rows[r] | cols[c] | boxes[b]) & bit)

        naked = rows[row] | cols[col] | boxes[box] | bit == everything
        if naked or any(not any(map(fits, unit)) for unit in units_of[cell]):
            empties -= 1
            if not empties:
                return board
        else:
            board[cell] = solution[cell]
            rows[row] ^= bit
            cols[col] ^= bit
            boxes[box] ^= bit
    return []
