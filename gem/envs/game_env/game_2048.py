r"""Game2048: slide and merge tiles until the target tile appears.

Reward: when the largest tile grows beyond all before, its share of the way from the largest tile of the start to
the target, counted in doublings: 1 in all for the target. Every share is paid once, so stalling does not pay.

A target may be out of reach of the turns: the tiles' sum begins with at most 8, a slide keeps it, and each new tile
adds at most 4. When turn n slides, n - 1 tiles have been added, so the sum is at most 4n + 4; the target is one of
the tiles, so it takes at least target/4 - 1 turns. 512 in 50 turns (at least 127) and 2048 in 100 (at least 511),
which are published, cannot be won; their returns tell how far a player came.
"""

from __future__ import annotations

import functools
import itertools

from gem.envs.game_env.game import Game, Outcome, illegal

_DIRECTIONS = ("up", "down", "left", "right")
_RANDOM_SIZES = ((16, 20), (32, 30), (64, 50))


class Game2048Env(Game):
    r"""Slide all tiles with ``\boxed{up}``, ``down``, ``left`` or ``right``.

    If target or turns are None, both are drawn at each reset: (16, 20), (32, 30) or (64, 50).

    Args:
        target_tile: the tile that wins: a power of two from 8 on.
        max_turns: moves.
        board_size: rows, and columns, of the board.
    """

    def __init__(self, target_tile: int | None = 2048, max_turns: int | None = 1000, board_size: int = 4) -> None:
        super().__init__(max_turns)
        if board_size < 2:
            raise ValueError(f"board_size must be at least 2, got {board_size}")
        # The largest tile needs one of each smaller one beside it, and a new 4 in the last cell.
        largest = 2 ** (board_size**2 + 1)
        if target_tile is not None and (not 8 <= target_tile <= largest or target_tile & (target_tile - 1)):
            raise ValueError(
                f"target_tile must be a power of two from 8 to {largest} on a board of size {board_size}, "
                f"got {target_tile}"
            )
        self._take(target_tile=target_tile, max_turns=max_turns)
        self._board_size = board_size

    @property
    def board_size(self) -> int:
        """Rows, and columns, of the board."""
        return self._board_size

    def deal(self) -> str:
        """Draw the target and the turns (if they are random) and two tiles."""
        sizes = self.rng.choice(_RANDOM_SIZES) if None in self._sizes else self._sizes
        self.target_tile, self.max_turns = sizes
        self.board = [[0] * self._board_size for _ in range(self._board_size)]
        self._add_tile()
        self._add_tile()
        self.init_max_tile_achieved = self.max_tile_achieved = max(map(max, self.board))
        return (
            f"2048. Slide the tiles until two of them merge into {self.target_tile}; you have {self.max_turns} turns. "
            "A move slides every tile as far as it goes; two equal tiles that meet merge into one of twice the number. "
            "Then a new tile, 2 or seldom 4, appears in a random empty cell (.). The moves are \\boxed{up}, "
            "\\boxed{down}, \\boxed{left} and \\boxed{right}; one that changes nothing is illegal."
        )

    def parse(self, answer: str) -> str | None:
        """Read a direction."""
        direction = answer.lower()
        return direction if direction in _DIRECTIONS else None

    def play(self, move: str) -> Outcome:
        """Slide the tiles and add one."""
        board = _slide(self.board, move)
        if board == self.board:
            return illegal(f"No tile can move {move}.")
        self.board = board
        self._add_tile()
        largest = max(map(max, board))
        reward = 0.0
        if largest > self.max_tile_achieved:
            way = _doublings(self.init_max_tile_achieved, self.target_tile)
            reward = _doublings(self.max_tile_achieved, largest) / way
            self.max_tile_achieved = largest
        if largest >= self.target_tile:
            return Outcome(f"You have made {largest}. Congratulations! You win.", reward, "win")
        if not self._can_move():
            return Outcome("No tile can move. You lose.", reward, "loss")
        return Outcome(f"The tiles move {move}.", reward)

    def get_task_suffix(self) -> str:
        """Draw the board."""
        return "\n" + "\n".join([" ".join([f"{tile or '.':>4}" for tile in row]) for row in self.board])

    def random_move(self) -> str:
        """Return a legal move."""
        return self.action_rng.choice([move for move in _DIRECTIONS if _slide(self.board, move) != self.board])

    def _add_tile(self) -> None:
        empty = [(r, c) for r, row in enumerate(self.board) for c, tile in enumerate(row) if not tile]
        row, col = self.rng.choice(empty)
        self.board[row][col] = 2 if self.rng.random() < 0.9 else 4

    def _can_move(self) -> bool:
        rows = [*self.board, *zip(*self.board, strict=True)]
        return any(0 in row or any(a == b for a, b in itertools.pairwise(row)) for row in rows)


def _doublings(low: int, high: int) -> int:
    return high.bit_length() - low.bit_length()


def _slide(board: list[list[int]], direction: str) -> list[list[int]]:
    """Return the board after a move."""
    if direction == "left":
        return [list(_merge(tuple(row))) for row in board]
    if direction == "right":
        return [list(_merge(tuple(row[::-1])))[::-1] for row in board]
    turned = [list(col) for col in zip(*board, strict=True)]
    turned = _slide(turned, "left" if direction == "up" else "right")
    return [list(row) for row in zip(*turned, strict=True)]


@functools.lru_cache(1 << 16)
def _merge(row: tuple[int, ...]) -> tuple[int, ...]:
    """Slide a row to its beginning; what has merged does not merge again."""
    merged: list[int] = []
    last = 0  # a tile that may still merge
    for tile in row:
        if tile and tile == last:
            merged[-1] *= 2
            last = 0
        elif tile:
            merged.append(tile)
            last = tile
    return (*merged, *[0] * (len(row) - len(merged)))
