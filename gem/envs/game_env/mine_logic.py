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
    """

    def __init__(self, rows: int, cols: int, num_mines: int) -> None:
        self._masks = masks(rows, cols)
        self._num_mines = num_mines
        self._unknown = (1 << rows * cols) - 1  # neither open nor proven
        self._numbers: dict[int, int] = {}  # cells with unknown ones around them
        self.safe = 0
        self.mines = 0

    def open(self, cell: int, count: int) -> None:
        """Take note of an open cell and its number."""
        bit = 1 << cell
        self._unknown &= ~bit
        self.safe &= ~bit
        self._numbers[cell] = count

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
        self._unknown &= ~cells
        return True

    def _from_one_number(self) -> bool:
        masks, unknown, safe, mines = self._masks, self._unknown, self.safe, self.mines
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
        proven = unknown != self._unknown
        self._unknown, self.safe, self.mines = unknown, safe, mines
        return proven

    def _from_two_numbers(self) -> bool:
        sets = {}
        for cell, count in self._numbers.items():
            around = self._masks[cell]
            sets[around & self._unknown] = count - (around & self.mines).bit_count()
        for small, few in sets.items():
            for large, many in sets.items():
                if small & ~large == 0 and small != large and self._prove(large & ~small, many - few):
                    return True
        return False

    def _from_all_mines(self) -> bool:
        """Compare the whole with the largest parts that numbers tell of and that do not overlap."""
        missing = self._num_mines - self.mines.bit_count()
        if not self._unknown:
            return False
        rest = self._unknown
        for cell, count in sorted(self._numbers.items()):  # not by when they were opened: a proof must not depend on it
            around = self._masks[cell]
            part = around & self._unknown
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
    around = neighbours(rows, cols)
    deduction = Deduction(rows, cols, mines.bit_count())
    closed = (1 << rows * cols) - 1 ^ mines
    safe = 1 << first
    while safe:
        closed ^= safe
        todo = cells_of(safe)
        for cell in todo:
            count = counts[cell]
            deduction.open(cell, count)
            if count == 0:
                for near in around[cell]:
                    if closed >> near & 1:
                        closed ^= 1 << near
                        todo.append(near)
        safe = deduction.deduce()
    return not closed
