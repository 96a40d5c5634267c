r"""FifteenPuzzle: slide the tiles of a square board into order.

Reward: 1 for the solution. In v0 the last turn pays the share of the cells that hold what they should, the gap
included, so a player that slides one tile to and fro earns what was in place from the start; v1 pays for the
solution only. A board is made by a walk of at most ``max_turns`` moves from the solved one, so it can be solved
in time.
"""

from __future__ import annotations

import functools

from gem.envs.game_env.game import Game, Outcome, illegal, in_rows

_DIRECTIONS = ("up", "down", "left", "right")
_BACK = {"up": "down", "down": "up", "left": "right", "right": "left"}
_RANDOM_SIZES = ((2, 10), (3, 20), (4, 50))


class FifteenPuzzleEnv(Game):
    r"""Slide a tile into the gap with ``\boxed{up}``, ``down``, ``left`` or ``right``.

    If either size is None, both are drawn at each reset: (2, 10), (3, 20) or (4, 50).

    Args:
        max_turns: moves.
        num_rows: rows, and columns, of the board.
        shaped: whether the last turn pays for cells in place (v0).
    """

    def __init__(self, max_turns: int | None = 20, num_rows: int | None = 2, shaped: bool = True) -> None:
        super().__init__(max_turns)
        if num_rows is not None and num_rows < 2:
            raise ValueError(f"num_rows must be at least 2, got {num_rows}")
        self._take(num_rows=num_rows, max_turns=max_turns)
        self._shaped = shaped

    @property
    def board(self) -> tuple[tuple[int | None, ...], ...]:
        """The tiles, row by row; None is the gap."""
        return in_rows([tile or None for tile in self.tiles], self.num_rows)

    @property
    def greatest_num(self) -> int:
        """The largest tile."""
        return self.num_rows**2 - 1

    def deal(self) -> str:
        """Draw the sizes (if they are random) and the board."""
        sizes = self.rng.choice(_RANDOM_SIZES) if None in self._sizes else self._sizes
        self.num_rows, self.max_turns = sizes
        assert self.max_turns is not None
        solved = _solved(self.num_rows)
        self.tiles = list(solved)
        while tuple(self.tiles) == solved:
            self._shuffle(self.max_turns)
        return (
            f"Sliding puzzle. Bring the tiles 1 to {len(solved) - 1} into order, row by row, with the gap (__) in the "
            f"bottom right corner, in at most {self.max_turns} turns. \\boxed{{up}} moves the tile below the gap up "
            "into it; down, left and right work alike, always in the direction in which the tile moves."
        )

    def parse(self, answer: str) -> str | None:
        """Read a direction."""
        direction = answer.lower()
        return direction if direction in _DIRECTIONS else None

    def play(self, move: str) -> Outcome:
        """Slide a tile."""
        gap = self.tiles.index(0)
        source = _sources(self.num_rows)[gap].get(move)
        if source is None:
            return illegal(f"No tile can move {move}: the gap is at the edge of the board.")
        tile = self.tiles[source]
        self.tiles[gap], self.tiles[source] = tile, 0
        if tuple(self.tiles) == _solved(self.num_rows):
            return Outcome("All tiles are in order. Congratulations! You win.", 1.0, "win")
        return Outcome(f"Tile {tile} moves {move}.")

    def get_task_suffix(self) -> str:
        """Draw the board."""
        return _template(self.num_rows) % tuple([tile or "__" for tile in self.tiles])

    def last_turn_reward(self, move: str, outcome: Outcome) -> float:
        """Pay for the cells in place in v0, nothing in v1."""
        if not self._shaped:
            return 0.0
        solved = _solved(self.num_rows)
        return sum(a == b for a, b in zip(self.tiles, solved, strict=True)) / len(solved)

    def random_move(self) -> str:
        """Return a legal move."""
        return self.action_rng.choice(list(_sources(self.num_rows)[self.tiles.index(0)]))

    def _shuffle(self, most: int) -> None:
        """Walk at most ``most`` moves, never straight back, which would undo the move before."""
        longest = min(most, 10 * len(self.tiles))  # more would mix no better
        # A 2x2 board is a cycle of 12 positions: short walks reach those that long ones do not.
        least = 1 if self.num_rows == 2 else longest - longest // 4
        sources = _sources(self.num_rows)
        gap, last = self.tiles.index(0), ""
        for _ in range(self.rng.randint(least, longest)):
            last = self.rng.choice([d for d in sources[gap] if d != _BACK.get(last)])
            source = sources[gap][last]
            self.tiles[gap], self.tiles[source] = self.tiles[source], 0
            gap = source


@functools.lru_cache
def _solved(num_rows: int) -> tuple[int, ...]:
    return (*range(1, num_rows**2), 0)


@functools.lru_cache
def _template(num_rows: int) -> str:
    return ("\n" + " ".join(["%2s"] * num_rows)) * num_rows


@functools.lru_cache
def _sources(num_rows: int) -> list[dict[str, int]]:
    """Return, for each place of the gap, the cell from which a tile would move in each direction."""
    sources = []
    for row in range(num_rows):
        for col in range(num_rows):
            near = {"up": (row + 1, col), "down": (row - 1, col), "left": (row, col + 1), "right": (row, col - 1)}
            sources.append(
                {d: r * num_rows + c for d, (r, c) in near.items() if 0 <= r < num_rows and 0 <= c < num_rows}
            )
    return sources
