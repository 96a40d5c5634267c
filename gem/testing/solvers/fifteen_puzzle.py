"""FifteenPuzzle by a search for any solution that is short enough."""

from __future__ import annotations

import heapq
import re
from collections.abc import Generator

_WEIGHT = 2
"""Of the distance in the order of the search: more finds longer solutions sooner."""


def solve(observation: str) -> Generator[str, str, None]:
    """Plan once from the first board; nothing in the game is left to chance."""
    limit = re.search(r"at most (\d+) turns", observation)
    assert limit, "the task names the turns"
    rows = [line.split() for line in observation.splitlines()[1:]]
    tiles = tuple(0 if word == "__" else int(word) for row in rows for word in row)
    for move in plan(tiles, len(rows), int(limit[1])):
        yield f"\\boxed{{{move}}}"


def plan(tiles: tuple[int, ...], size: int, limit: int) -> list[str]:
    """Return at most ``limit`` moves that solve the board, by weighted A* with Manhattan distances."""
    steps = _steps(size)
    cells = range(size**2)
    distance = [[abs(c // size - (t - 1) // size) + abs(c % size - (t - 1) % size) for c in cells] for t in cells]
    start = sum(distance[tile][cell] for cell, tile in enumerate(tiles) if tile)
    paths: dict[tuple[int, ...], tuple[int, tuple[int, ...] | None, str]] = {tiles: (0, None, "")}
    queue = [(_WEIGHT * start, start, 0, tiles)]
    while queue:
        _, left, done, tiles = heapq.heappop(queue)
        if left == 0:
            return _moves(paths, tiles)
        if done > paths[tiles][0]:
            continue
        gap = tiles.index(0)
        for move, source in steps[gap]:
            tile = tiles[source]
            rest = left - distance[tile][source] + distance[tile][gap]
            if done + 1 + rest > limit:
                continue
            board = list(tiles)
            board[gap], board[source] = tile, 0
            new = tuple(board)
            if new not in paths or paths[new][0] > done + 1:
                paths[new] = (done + 1, tiles, move)
                heapq.heappush(queue, (done + 1 + _WEIGHT * rest, rest, done + 1, new))
    raise AssertionError(f"there is no solution in {limit} moves")


def _moves(paths: dict[tuple[int, ...], tuple[int, tuple[int, ...] | None, str]], end: tuple[int, ...]) -> list[str]:
    moves = []
    _, before, move = paths[end]
    while before is not None:
        moves.append(move)
        _, before, move = paths[before]
    return moves[::-1]


def _steps(size: int) -> list[list[tuple[str, int]]]:
    """Return, for each place of the gap, the moves and the cells from which their tiles come."""
    steps = []
    for cell in range(size**2):
        row, col = divmod(cell, size)
        near = {"up": (row + 1, col), "down": (row - 1, col), "left": (row, col + 1), "right": (row, col - 1)}
        steps.append([(m, r * size + c) for m, (r, c) in near.items() if 0 <= r < size and 0 <= c < size])
    return steps
