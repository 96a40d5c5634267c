r"""Scripted players that win a game through its text alone.

A solver proves two things about a game: its observations say enough to win, and winning pays. It is a generator
function: it is given the first observation, yields what it says, and is sent the observation that follows.

>>> import gem
>>> from gem.testing.solvers import solve
>>> env = gem.make("game:TowerofHanoi-v0-easy")
>>> solve(env, seed=7)
SolverResult(return_=1.0, turns=7, success=True)
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator
from typing import NamedTuple

from gem.core import Env

Solver = Callable[[str], Generator[str, str, None]]

SOLVERS = {
    "game:Crosswords": "crosswords",
    "game:FifteenPuzzle": "fifteen_puzzle",
    "game:Game2048": "game_2048",
    "game:GuessTheNumber": "guess_the_number",
    "game:Hangman": "hangman",
    "game:Mastermind": "mastermind",
    "game:Minesweeper": "minesweeper",
    "game:Sokoban": "sokoban",
    "game:Sudoku": "sudoku",
    "game:TowerofHanoi": "tower_of_hanoi",
    "game:WordSearch": "word_search",
    "game:Wordle": "wordle",
}
"""Modules of this package whose function ``solve`` plays a game, by the id without version and variant."""


WIN_SHARES = {
    "game:Game2048-v0": 0.0,
    "game:Game2048-v0-hard": 0.0,
    "game:Game2048-v0-extreme-hard": 0.0,
    "game:Game2048-v1-extreme-hard": 0.88,
}
"""Share of episodes that the solver wins, where it does not win all. Those of 0 are out of anybody's reach."""


class SolverResult(NamedTuple):
    """How a solver's episode ended.

    Attributes:
        return_: the sum of its rewards.
        turns: turns played.
        success: the environment's ``info["success"]``.
    """

    return_: float
    turns: int
    success: bool


def find_solver(env_id: str) -> Solver | None:
    """Return the solver for an environment of this package; None if there is none."""
    module = SOLVERS.get(env_id.split("-v")[0])
    return None if module is None else importlib.import_module(f"gem.testing.solvers.{module}").solve


def solve(env: Env, seed: int, solver: Solver | None = None) -> SolverResult:
    """Let a solver play an episode.

    Args:
        env: the environment.
        seed: of the episode.
        solver: who plays; by default the solver of the environment's id.

    Raises:
        LookupError: the environment has no solver.
    """
    solver = solver or find_solver(env.env_id or "")
    if solver is None:
        raise LookupError(f"there is no solver for {env.env_id}")
    observation, _ = env.reset(seed=seed)
    player = solver(observation)
    action = next(player)
    total, turns = 0.0, 0
    while True:
        observation, reward, terminated, truncated, info = env.step(action)
        total, turns = total + reward, turns + 1
        if terminated or truncated:
            player.close()
            return SolverResult(total, turns, bool(info.get("success", False)))
        action = player.send(observation)
