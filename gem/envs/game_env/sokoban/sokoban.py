r"""Sokoban: push every box onto a target.

Reward: 1 for the solution. In v0 the last turn pays the share of the boxes that stand on targets, so a player that
pushes the nearest box home and then walks to and fro earns a part of the game; v1 pays for the solution only. At the
start no box stands on a target.

How a room is drawn is in :mod:`gem.envs.game_env.sokoban.utils`.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from gem.envs.game_env.game import Game, Outcome, illegal
from gem.envs.game_env.sokoban.utils import BACK, CHANGE_COORDINATES, FIXED, NUMBERS, draw_room, steps_of

__all__ = ["CHANGE_COORDINATES", "SokobanEnv"]

_RANDOM_SIZES = (((6, 6), 2, 20), ((8, 8), 5, 50))
_ENTERED = {"_": "P", "O": "S", "X": "P", "√": "S"}
"""What a cell shows when the player has stepped onto it."""
_VACATED = {"P": "_", "S": "O"}
_FILLED = {"_": "X", "O": "√"}
"""What a cell shows when a box has been pushed onto it; there is nothing for one that takes none."""


class SokobanEnv(Game):
    r"""Walk, and push boxes, with ``\boxed{up}``, ``down``, ``left`` or ``right``.

    If any of the sizes is None, all three are drawn at each reset: ((6, 6), 2, 20) or ((8, 8), 5, 50) for room, boxes
    and turns.

    Args:
        dim_room: rows and columns of the room, outer walls included.
        max_turns: moves.
        num_boxes: boxes, and targets.
        shaped: whether the last turn pays for boxes on targets (v0).
    """

    def __init__(
        self,
        dim_room: Sequence[int] | None = (6, 6),
        max_turns: int | None = 100,
        num_boxes: int | None = 3,
        shaped: bool = True,
    ) -> None:
        super().__init__(max_turns)
        if num_boxes is not None and num_boxes < 1:
            raise ValueError(f"num_boxes must be at least 1, got {num_boxes}")
        self._take(num_boxes=num_boxes, max_turns=max_turns)
        self._dim_room = dim_room
        self.board: list[str] = []
        if dim_room is not None and num_boxes is not None and max_turns is not None:
            rows, cols = dim_room
            if not _is_possible(rows, cols, num_boxes, max_turns):
                raise ValueError(
                    f"found no room of {rows}x{cols} cells with {num_boxes} boxes that can be solved in {max_turns} "
                    "turns: make the room larger, or the boxes fewer"
                )
        self._shaped = shaped

    action_space = property(lambda env: list(BACK), doc="The moves.")

    @property
    def dim_room(self) -> Any:
        """Rows and columns, outer walls included; the next reset draws a room of those that are set."""
        return (len(self.board) // self.cols, self.cols) if self.board else self._dim_room

    @dim_room.setter
    def dim_room(self, dim_room: Sequence[int] | None) -> None:
        type(self)(**{**self._arguments(), "dim_room": dim_room})  # raises what it would raise
        self._remember(dim_room=dim_room)
        self._dim_room = dim_room

    @property
    def room_state(self) -> np.ndarray:
        """What is in each cell: 0 a wall, 1 floor, 2 a target, 3 a box on a target, 4 a box, 5 the player."""
        return _to_read([NUMBERS[symbol] for symbol in self.board], self.cols)

    @property
    def room_fixed(self) -> np.ndarray:
        """The same without boxes and the player."""
        return _to_read([FIXED[symbol] for symbol in self.board], self.cols)

    @property
    def num_gen_steps(self) -> int:
        """Moves in which the room can be solved."""
        assert self.max_turns is not None
        return self.max_turns

    @property
    def player_position(self) -> tuple[int, int]:
        """The player's row and column."""
        row, col = divmod(self.player, self.cols)
        return row, col

    def deal(self) -> str:
        """Draw the sizes (if they are random) and the room."""
        sizes: Any = (self._dim_room, *self._sizes)
        sizes = self.rng.choice(_RANDOM_SIZES) if None in sizes else sizes
        (rows, cols), self.num_boxes, self.max_turns = sizes
        assert self.max_turns is not None
        self.cols = cols
        room = None
        while room is None:
            room = draw_room(self.rng, rows, cols, self.num_boxes, self.max_turns)
        self.board = room.board
        self.player = room.player
        return (
            f"Sokoban. Push all {self.num_boxes} boxes onto the targets in at most {self.max_turns} turns. # is a "
            "wall, _ floor, O a target, X a box, √ a box on a target, P you, and S you on a target. \\boxed{up}, "
            "\\boxed{down}, \\boxed{left} and \\boxed{right} move you by one cell; a box in the way is pushed along, "
            "if the cell behind it holds neither a wall nor a box. Boxes cannot be pulled."
        )

    def parse(self, answer: str) -> str | None:
        """Read a direction."""
        direction = answer.lower()
        return direction if direction in BACK else None

    def play(self, move: str) -> Outcome:
        """Walk or push."""
        board = self.board
        step = steps_of(self.cols)[move]
        cell = self.player + step
        entered = board[cell]
        if entered == "#":
            return illegal(f"There is a wall: you cannot move {move}.")
        pushes = entered not in _FILLED
        if pushes:
            behind = board[cell + step]
            if behind not in _FILLED:
                obstacle = "wall" if behind == "#" else "box"
                return illegal(f"The box cannot be pushed {move}: there is a {obstacle} behind it.")
            board[cell + step] = _FILLED[behind]
        board[self.player] = _VACATED[board[self.player]]
        board[cell] = _ENTERED[entered]
        self.player = cell
        if pushes and "X" not in board:
            return Outcome("All boxes are on targets. Congratulations! You win.", 1.0, "win")
        return Outcome(f"You push a box {move}." if pushes else f"You move {move}.")

    def get_task_suffix(self) -> str:
        """Draw the room."""
        return _template(len(self.board) // self.cols, self.cols) % tuple(self.board)

    def last_turn_reward(self, move: str, outcome: Outcome) -> float:
        """Pay for boxes on targets in v0, nothing in v1."""
        return self.board.count("√") / self.num_boxes if self._shaped else 0.0

    def random_move(self) -> str:
        """Return a legal move; the cell that the player came from is free, so there is one."""
        legal = []
        for move, step in steps_of(self.cols).items():
            entered = self.board[self.player + step]
            if entered in _FILLED or (entered != "#" and self.board[self.player + 2 * step] in _FILLED):
                legal.append(move)
        return self.action_rng.choice(legal)


def _to_read(numbers: list[int], cols: int) -> np.ndarray:
    """Return an array that cannot be set in vain."""
    array = np.array(numbers).reshape(-1, cols)
    array.flags.writeable = False
    return array


@functools.lru_cache
def _template(rows: int, cols: int) -> str:
    return ("\n" + " ".join(["%s"] * cols)) * rows


@functools.lru_cache
def _is_possible(rows: int, cols: int, num_boxes: int, max_turns: int) -> bool:
    """Return whether any of some tries gives a room."""
    rng = random.Random(0)
    return any(draw_room(rng, rows, cols, num_boxes, max_turns) for _ in range(500))
