"""Drawing a room of Sokoban that can be solved.

A room is made by playing backwards: the boxes begin on the targets, and the player pulls them away in at most
``max_turns`` moves, walks included. The same moves in the opposite order and direction solve the room.
"""

from __future__ import annotations

import functools
import random
from typing import NamedTuple

import numpy as np

BACK = {"up": "down", "down": "up", "left": "right", "right": "left"}
CHANGE_COORDINATES = {0: (-1, 0), 1: (1, 0), 2: (0, -1), 3: (0, 1)}
"""Rows and columns by which up, down, left and right go."""

NUMBERS = {"#": 0, "_": 1, "O": 2, "√": 3, "X": 4, "P": 5, "S": 5}
"""gem-llm's number for a symbol: 0 a wall, 1 floor, 2 a target, 3 a box on a target, 4 a box, 5 the player."""
FIXED = {"#": 0, "_": 1, "O": 2, "√": 2, "X": 1, "P": 1, "S": 2}
"""The number of what cannot be moved."""


@functools.lru_cache
def steps_of(cols: int) -> dict[str, int]:
    """Return by how many cells each direction goes in a room with some columns."""
    return {"up": -cols, "down": cols, "left": -1, "right": 1}


class Room(NamedTuple):
    """A room, and moves that solve it.

    Attributes:
        board: the symbols, row by row.
        player: the player's cell.
        solution: a direction a move.
        origins: for each box (a cell of the board) the target from which it was pulled.
    """

    board: list[str]
    player: int
    solution: list[str]
    origins: dict[int, int]


def draw_room(rng: random.Random, rows: int, cols: int, num_boxes: int, max_turns: int) -> Room | None:
    """Draw a room that can be solved in ``max_turns`` moves; return None if this try gives none."""
    floor = _draw_floor(rng, rows, cols)
    steps = steps_of(cols)
    open_cells = [c for c in sorted(floor) if any(c + s in floor and c + 2 * s in floor for s in steps.values())]
    if len(open_cells) < num_boxes or len(floor) <= num_boxes:
        return None
    targets = rng.sample(open_cells, num_boxes)  # a box can be pulled from each, once the others are out of its way
    play = _play_backwards(rng, floor, targets, steps, max_turns)
    if play is None:
        return None
    boxes, player, moves = play
    board = ["_" if cell in floor else "#" for cell in range(rows * cols)]
    for cell in targets:
        board[cell] = "O"
    for cell in boxes:
        board[cell] = "X"
    board[player] = "S" if board[player] == "O" else "P"
    return Room(board, player, [BACK[move] for move in reversed(moves)], dict(zip(boxes, targets, strict=True)))


def generate_room(
    dim: tuple[int, int] = (13, 13),
    p_change_directions: float = 0.35,
    num_steps: int = 25,
    num_boxes: int = 3,
    tries: int = 1000,
    second_player: bool = False,
    seed: int | None = None,
) -> tuple[np.ndarray, np.ndarray, dict[tuple[int, int], tuple[int, int]]]:
    """Draw a room, in the form of gem-llm's function of this name.

    Args:
        dim: rows and columns, outer walls included.
        p_change_directions: accepted, as published, and without effect: floors are drawn otherwise here.
        num_steps: moves in which the room can be solved.
        num_boxes: boxes, and targets.
        tries: how often to try.
        second_player: must be False.
        seed: what fixes the room; None takes one from the operating system.

    Returns:
        What cannot be moved, and what there is (see :data:`NUMBERS`), as arrays of shape ``dim``; and for each target
        where its box is.

    Raises:
        NotImplementedError: there is to be a second player.
        RuntimeError: no try gave a room.
    """
    if second_player:
        raise NotImplementedError("a room has one player")
    rng = random.Random(seed)
    rows, cols = dim
    room = next(filter(None, (draw_room(rng, rows, cols, num_boxes, num_steps) for _ in range(tries))), None)
    if room is None:
        raise RuntimeError(f"{tries} tries gave no room of {rows}x{cols} cells with {num_boxes} boxes")
    fixed, state = (np.array([table[symbol] for symbol in room.board]).reshape(dim) for table in (FIXED, NUMBERS))
    return fixed, state, {divmod(room.origins[box], cols): divmod(box, cols) for box in room.origins}


def _draw_floor(rng: random.Random, rows: int, cols: int) -> set[int]:
    """Wall up to a quarter of the cells inside, leaving the others connected."""
    inside = [row * cols + col for row in range(1, rows - 1) for col in range(1, cols - 1)]
    floor = set(inside)
    for cell in rng.sample(inside, rng.randint(len(inside) // 8, len(inside) // 4)):
        floor.discard(cell)
        if floor and len(_walk(next(iter(floor)), floor, steps_of(cols))) < len(floor):
            floor.add(cell)
    return floor


def _walk(start: int, free: set[int], steps: dict[str, int]) -> dict[int, tuple[str, ...]]:
    """Return the shortest walk to each cell that can be reached."""
    walks: dict[int, tuple[str, ...]] = {start: ()}
    queue = [start]
    for cell in queue:
        walk = walks[cell]
        for move, step in steps.items():
            new = cell + step
            if new in free and new not in walks:
                walks[new] = (*walk, move)
                queue.append(new)
    return walks


def _play_backwards(
    rng: random.Random, floor: set[int], targets: list[int], steps: dict[str, int], max_turns: int
) -> tuple[list[int], int, list[str]] | None:
    """Pull boxes away from the targets.

    Returns:
        Boxes, player and all moves up to the last time that every target was bare; None if there was none.
    """
    boxes = list(targets)
    free = floor.difference(boxes)
    player = rng.choice(sorted(free))
    moves: list[str] = []
    found = None
    while True:
        walks = _walk(player, free, steps)
        pulls, weights = [], []
        for i, box in enumerate(boxes):
            for move, step in steps.items():
                walk = walks.get(box + step)
                if walk is not None and box + 2 * step in free:
                    pulls.append((i, walk, move))
                    # Boxes at home first; and rather what is near, so that more pulls fit into the turns.
                    weights.append((20 if box in targets else 1) / (2 + len(walk)))
        if not pulls:
            return found
        [(i, walk, move)] = rng.choices(pulls, weights)
        if moves:  # what is walked before the first pull is walked after the win
            moves += walk
        moves.append(move)
        if len(moves) > max_turns:
            return found
        box, step = boxes[i], steps[move]
        boxes[i], player = box + step, box + 2 * step
        free.add(box)
        free.discard(box + step)
        if not any(box in targets for box in boxes):
            found = list(boxes), player, list(moves)


def is_player_reachable(room_state: np.ndarray, target_pos: tuple[int, int]) -> bool:
    """Return whether the player can walk to a row and column of a room (see :data:`NUMBERS`) without a push."""
    cols = room_state.shape[1]
    cells = room_state.ravel().tolist()
    if NUMBERS["P"] not in cells:
        return False
    free = {cell for cell, number in enumerate(cells) if number in (NUMBERS["_"], NUMBERS["O"], NUMBERS["P"])}
    return target_pos[0] * cols + target_pos[1] in _walk(cells.index(NUMBERS["P"]), free, steps_of(cols))
