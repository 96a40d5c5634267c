"""Which cells of a Minesweeper board are proven safe by what is open.

The proof uses three rules, until none says more:

* **One number.** Where as many mines are missing as cells are unknown, all of these are mines; where none is
  missing, all are safe.
* **Two numbers.** If the unknown cells around one number are a part of those around another, the rest holds the
  difference of their mines.
* **All mines.** The unknown cells of the whole board are such a set as well: they hold what is missing of the total.

Sets of cells are integers, a bit a cell, since there are many of them to compare.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence


@functools.lru_cache
def neighbours(rows: int, cols: int) -> tuple[tuple[int, ...], ...]:
    """Return the cells around each cell; cells are numbered row by row."""
    return tuple(
        tuple(
            r * cols + c
            for r in range(max(0, row - 1), min(rows, row + 2))
            for c in range(max(0, col - 1), min(cols, col + 2))
            if (r, c) != (row, col)
        )
        for row in range(rows)
        for col in range(cols)
    )


@functools.lru_cache
def masks(rows: int, cols: int) -> tuple[int, ...]:
    """Return the cells around each cell as a set of bits."""
    return tuple(sum(1 << cell for cell in around) for around in neighbours(rows, cols))


def cells_of(mask: int) -> list[int]:
    """Return the cells of a set, in order."""
    cells = []
    while mask:
        low = mask & -mask
        cells.append(low.bit_length() - 1)
        mask ^= low
    return cells


class Deduction:
    """What is proven about a board.

    Args:
        rows: rows of the board.
        cols: columns of the board.
        num_mines: mines on it.

    Attributes:
        safe: the cells proven safe and not open yet, as a set of bits.
        mines: the cells proven to be mines.
        unknown: the cells that are neither open nor proven.
    """

    def __init__(self, rows: int, cols: int, num_mines: int) -> None:
        self._masks = masks(rows, cols)
        self._num_mines = num_mines
        self.unknown = (1 << rows * cols) - 1
        self._numbers: dict[int, int] = {}  # cells with unknown ones around them
        self.safe = 0
        self.mines = 0

    def open(self, cells: int, counts: Sequence[int]) -> None:
        """Take note of open cells.

        Args:
            cells: the cells, as a set of bits.
            counts: the number of each cell of the board; those that are not open are not looked at.
        """
        self.unknown &= ~cells
        for cell in cells_of(cells):
            if counts[cell]:
                self._numbers[cell] = counts[cell]
            else:
                self.safe |= self._masks[cell] & self.unknown
        self.safe &= ~cells
        self.unknown &= ~self.safe

    def deduce(self) -> int:
        """Apply the rules until they prove a cell safe, or nothing; return the cells proven safe."""
        while not self.safe and (self._from_one_number() or self._from_two_numbers() or self._from_all_mines()):
            pass
        return self.safe

    def _prove(self, cells: int, num_mines: int) -> bool:
        """Take note of unknown cells if all or none of them are mines; return whether they were."""
        if num_mines == 0:
            self.safe |= cells
        elif num_mines == cells.bit_count():
            self.mines |= cells
        else:
            return False
        self.unknown &= ~cells
        return True

    def _from_one_number(self) -> bool:
        masks, unknown, safe, mines = self._masks, self.unknown, self.safe, self.mines
        for cell, count in list(self._numbers.items()):
            around = masks[cell]
            cells = around & unknown
            if not cells:
                del self._numbers[cell]  # it has nothing more to say
                continue
            missing = count - (around & mines).bit_count()
            if missing == 0:
                safe |= cells
                unknown ^= cells
            elif missing == cells.bit_count():
                mines |= cells
                unknown ^= cells
        proven = unknown != self.unknown
        self.unknown, self.safe, self.mines = unknown, safe, mines
        return proven

    def _from_two_numbers(self) -> bool:
        sets = {}
        for cell, count in self._numbers.items():
            around = self._masks[cell]
            sets[around & self.unknown] = count - (around & self.mines).bit_count()
        for small, few in sets.items():
            for large, many in sets.items():
                if small & ~large == 0 and small != large and self._prove(large & ~small, many - few):
                    return True
        return False

    def _from_all_mines(self) -> bool:
        """Compare the whole with the largest parts that numbers tell of and that do not overlap."""
        missing = self._num_mines - self.mines.bit_count()
        if not self.unknown:
            return False
        rest = self.unknown
        for cell, count in sorted(self._numbers.items()):  # not by when they were opened: a proof must not depend on it
            around = self._masks[cell]
            part = around & self.unknown
            if part and part & ~rest == 0:
                rest &= ~part
                missing -= count - (around & self.mines).bit_count()
        return bool(rest) and self._prove(rest, missing)


def can_be_solved(rows: int, cols: int, counts: Sequence[int], mines: int, first: int) -> bool:
    """Return whether a board can be opened from one cell on without a guess.

    Args:
        rows: rows of the board.
        cols: columns of the board.
        counts: for each cell the mines around it.
        mines: the cells with mines, as a set of bits.
        first: the cell that is opened first.
    """
    deduction = Deduction(rows, cols, mines.bit_count())
    deduction.open(1 << first, counts)
    while deduction.deduce():
        deduction.open(deduction.safe, counts)
    return not deduction.unknown
