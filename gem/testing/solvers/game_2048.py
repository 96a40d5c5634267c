"""Game2048 by looking two moves ahead, and taking the position that is the most orderly."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Generator

Board = tuple[tuple[int, ...], ...]


def solve(observation: str) -> Generator[str, str, None]:
    """Make the move after which the new tile, wherever it appears, leaves the best answers."""
    while True:
        lines = observation.splitlines()
        size = len(lines[-1].split())
        board = tuple(tuple(0 if word == "." else int(word) for word in line.split()) for line in lines[-size:])
        moves = _moves(board)
        best = max(moves, key=lambda move: _expected(moves[move]))
        observation = yield f"\\boxed{{{best}}}"


def _expected(board: Board) -> float:
    """Return the mean, over the places of a new 2, of the best order after the next move."""
    values = []
    for r, row in enumerate(board):
        for c, tile in enumerate(row):
            if not tile:
                new = (*board[:r], (*row[:c], 2, *row[c + 1 :]), *board[r + 1 :])
                values.append(max(map(_order, _moves(new).values()), default=-1e6))
    return sum(values) / len(values)


def _moves(board: Board) -> dict[str, Board]:
    """Return the boards after the moves that change something."""
    columns = tuple(zip(*board, strict=True))
    left, right = _slide(board)
    up, down = _slide(columns)
    boards = {
        "left": left,
        "right": right,
        "up": tuple(zip(*up, strict=True)),
        "down": tuple(zip(*down, strict=True)),
    }
    return {move: new for move, new in boards.items() if new != board}


def _slide(lines: Board) -> tuple[Board, Board]:
    both = [_slide_line(line) for line in lines]
    return tuple(line for line, _ in both), tuple(line for _, line in both)


@functools.lru_cache(1 << 16)
def _slide_line(line: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return a line after a slide to its beginning, and to its end."""
    return _merge(line), _merge(line[::-1])[::-1]


def _merge(line: tuple[int, ...]) -> tuple[int, ...]:
    merged: list[int] = []
    open_to_merge = False
    for tile in line:
        if not tile:
            continue
        if open_to_merge and merged[-1] == tile:
            merged[-1] *= 2
            open_to_merge = False
        else:
            merged.append(tile)
            open_to_merge = True
    return (*merged, *[0] * (len(line) - len(merged)))


def _order(board: Board) -> float:
    """Rate a position: lines in order, equal neighbours, empty cells and large tiles are good."""
    return sum(map(_order_of_line, board)) + sum(map(_order_of_line, zip(*board, strict=True)))


@functools.lru_cache(1 << 16)
def _order_of_line(line: tuple[int, ...]) -> float:
    ranks = [math.log2(tile) if tile else 0 for tile in line]
    pairs = list(itertools.pairwise(ranks))
    rises = sum(max(0, b**2 - a**2) for a, b in pairs)
    falls = sum(max(0, a**2 - b**2) for a, b in pairs)
    merges = sum(a == b > 0 for a, b in pairs)
    made = sum(tile * rank for tile, rank in zip(line, ranks, strict=True))
    return line.count(0) + 1.5 * merges - 1.7 * min(rises, falls) + 0.18 * made
