"""The environments. This file registers them; their modules are imported by the first ``make``.

Ids, parameters and hub names are those that ``gem-llm`` 0.1.0 publishes. A game's id without a variant is its hard
variant; None as a parameter is drawn at each reset.
"""

from __future__ import annotations

from typing import Any

from gem.envs.reasoning_gym_names import NAMES as REASONING_GYM_NAMES
from gem.envs.registration import register

_SHAPED = {"v0": {"shaped": True}, "v1": {"shaped": False}}
"""v0 pays something for the last position, as published; v1 pays for the solution only."""


def _register_game(
    name: str,
    entry_point: str,
    parameters: str,
    variants: dict[str, tuple[Any, ...]],
    versions: dict[str, dict[str, Any]] | None = None,
) -> None:
    for version, fixed in (versions or {"v0": {}}).items():
        for variant, values in {"": variants["-hard"], **variants}.items():
            kwargs = dict(zip(parameters.split(), values, strict=True))
            register(f"game:{name}-{version}{variant}", f"gem.envs.game_env.{entry_point}", **kwargs, **fixed)


def _register_games() -> None:
    _register_game(
        "GuessTheNumber",
        "guess_the_number:GuessTheNumberEnv",
        "min_number max_number max_turns",
        {"-hard": (1, 50, 7), "-easy": (1, 10, 4), "-random": (None, None, None)},
        _SHAPED,
    )
    _register_game(
        "Mastermind",
        "mastermind:MastermindEnv",
        "code_length num_numbers max_turns",
        {"-hard": (4, 8, 30), "-easy": (2, 6, 10), "-random": (None, None, None)},
    )
    _register_game(
        "Minesweeper",
        "minesweeper:MinesweeperEnv",
        "rows cols num_mines max_turns",
        {"-hard": (8, 8, 12, 64), "-easy": (5, 5, 5, 25), "-random": (None, None, None, None)},
    )
    _register_game(
        "Wordle",
        "wordle:WordleEnv",
        "word_length max_turns",
        {"-hard": (5, 25), "-easy": (3, 15), "-random": (None, None)},
    )
    _register_game(
        "FifteenPuzzle",
        "fifteen_puzzle:FifteenPuzzleEnv",
        "num_rows max_turns",
        {"-hard": (4, 50), "-easy": (2, 10), "-random": (None, None)},
        _SHAPED,
    )
    _register_game(
        "Hangman",
        "hangman:HangmanEnv",
        "word_length max_turns",
        {"-hard": (7, 20), "-easy": (3, 10), "-random": (None, None)},
    )
    _register_game(
        "Sudoku",
        "sudoku:SudokuEnv",
        "scale clues max_turns",
        {"-hard": (9, 50, 50), "-easy": (4, 10, 15), "-random": (None, None, None)},
    )
    _register_game(
        "TowerofHanoi",
        "tower_of_hanoi:TowerofHanoiEnv",
        "num_disks max_turns",
        {"-hard": (5, 35), "-easy": (3, 10), "-random": (None, None)},
        _SHAPED,
    )
    _register_game(
        "Game2048",
        "game_2048:Game2048Env",
        "target_tile max_turns",
        {"-hard": (512, 50), "-extreme-hard": (2048, 100), "-easy": (64, 50), "-random": (None, None)},
    )
    _register_game(
        "Sokoban",
        "sokoban:SokobanEnv",
        "dim_room num_boxes max_turns",
        {"-hard": ((8, 8), 4, 50), "-easy": ((6, 6), 2, 20), "-random": (None, None, None)},
        _SHAPED,
    )
    _register_game(
        "Crosswords",
        "crosswords:CrosswordsEnv",
        "hardcore num_words max_turns",
        {"-hard": (True, 3, 40), "-easy": (False, 3, 30), "-random": (None, None, None)},
    )
    _register_game(
        "WordSearch",
        "word_search:WordSearchEnv",
        "hardcore num_words max_turns",
        {"-hard": (True, 5, 20), "-easy": (False, 5, 20), "-random": (None, None, None)},
    )


def _register_reasoning_gym() -> None:
    for name in REASONING_GYM_NAMES:
        register(f"rg:{name}", "gem.envs.reasoning_gym:ReasoningGymEnv", name=name)


_register_games()
_register_reasoning_gym()
