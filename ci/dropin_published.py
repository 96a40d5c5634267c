"""Play the games of gem-llm with fixed lists of actions, and print every step as a JSON line for ci/dropin_games.py.

It runs in the environment of gem-llm. The words that gem-llm downloads from a hub are stood in for by some of this
repository's, since what is compared are rules and rewards.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import random
import string
import sys
from pathlib import Path
from typing import Any

SEEDS = 20
MOST_STEPS = 25
DATA = Path(__file__).resolve().parent.parent / "gem" / "envs" / "game_env" / "data"
MALFORMED = ("I do not know.", "\\boxed{}", "\\boxed{hello there, friend}", "\\boxed{1 2 3 4 5 6 7}", "boxed{1}")
DIRECTIONS = ("up", "down", "left", "right")

GAMES: dict[str, tuple[str, list[dict[str, Any]], tuple[str, ...]]] = {
    # Name: module and class, arguments, and the attributes that are the state.
    "GuessTheNumber": (
        "guess_the_number:GuessTheNumberEnv",
        [{"min_number": 1, "max_number": 10, "max_turns": 4}, {"min_number": 1, "max_number": 50, "max_turns": 7}],
        ("game_number", "previous_guesses"),
    ),
    "Mastermind": (
        "mastermind:MastermindEnv",
        [{"code_length": 2, "num_numbers": 6, "max_turns": 10}, {"code_length": 4, "num_numbers": 8, "max_turns": 30}],
        ("game_code", "previous_guesses", "milestone"),
    ),
    "FifteenPuzzle": (
        "fifteen_puzzle:FifteenPuzzleEnv",
        [{"max_turns": 10, "num_rows": 2}, {"max_turns": 20, "num_rows": 3}],
        ("board",),
    ),
    "Game2048": (
        "game_2048:Game2048Env",
        [{"target_tile": 16, "max_turns": 50}, {"target_tile": 64, "max_turns": 20}],
        ("board", "max_tile_achieved", "init_max_tile_achieved"),
    ),
    "Minesweeper": (
        "minesweeper:MinesweeperEnv",
        [
            {"rows": 5, "cols": 5, "num_mines": 5, "max_turns": 25},
            {"rows": 8, "cols": 8, "num_mines": 12, "max_turns": 10},
        ],
        ("grid", "revealed", "flags"),
    ),
    "Sudoku": (
        "sudoku:SudokuEnv",
        [{"scale": 4, "clues": 10, "max_turns": 15}, {"scale": 9, "clues": 50, "max_turns": 50}],
        ("full_grid", "board", "init_num_empty"),
    ),
    "TowerofHanoi": (
        "tower_of_hanoi:TowerofHanoiEnv",
        [{"num_disks": 3, "max_turns": 10}, {"num_disks": 1, "max_turns": 5}],
        ("board",),
    ),
    "Sokoban": (
        "sokoban:SokobanEnv",
        [{"dim_room": [6, 6], "num_boxes": 1, "max_turns": 20}, {"dim_room": [6, 6], "num_boxes": 2, "max_turns": 12}],
        ("room_state", "room_fixed"),
    ),
    "Wordle": (
        "wordle:WordleEnv",
        [{"word_length": 3, "max_turns": 15}, {"word_length": 5, "max_turns": 6}],
        ("secret_word", "previous_guesses", "milestones"),
    ),
    "Hangman": (
        "hangman:HangmanEnv",
        [{"word_length": 3, "max_turns": 10}, {"word_length": 7, "max_turns": 20}],
        ("secret_word", "board", "guessed_letters"),
    ),
    "WordSearch": (
        "word_search:WordSearchEnv",
        [{"num_words": 3, "max_turns": 20}, {"num_words": 5, "max_turns": 8}],
        ("game_board", "placed_words", "correct_words", "attempts"),
    ),
    "Crosswords": (
        "crosswords:CrosswordsEnv",
        [{"num_words": 2, "max_turns": 50}, {"num_words": 3, "max_turns": 10}],
        ("solution", "board"),
    ),
}


def main() -> None:
    words = [word for length in range(3, 10) for word in (DATA / "common" / f"{length}.txt").read_text().split()]
    for name, (entry, variants, state) in GAMES.items():
        module_name, _, class_name = entry.partition(":")
        module = importlib.import_module(f"gem.envs.game_env.{module_name}")
        cls = getattr(module, class_name)
        inner = sys.modules[cls.__module__]
        if hasattr(inner, "words"):
            inner.words = _Words(words)
        if hasattr(inner, "nltk"):
            inner.nltk.download = lambda *_: True
        for kwargs in variants:
            for seed in range(SEEDS):
                _play(name, cls, kwargs, seed, state)


class _Words:
    def __init__(self, words: list[str]) -> None:
        self._words = words

    def words(self, name: str) -> list[str]:
        return self._words


def _play(name: str, cls: Any, kwargs: dict[str, Any], seed: int, state: tuple[str, ...]) -> None:
    random.seed(seed)
    with contextlib.redirect_stdout(sys.stderr):
        env = cls(**kwargs)
        env.reset(seed=seed)
        if name == "Minesweeper":  # which lays its mines at the first one
            env.step(f"\\boxed{{reveal {env.rows // 2} {env.cols // 2}}}")
    draw = random.Random(f"{name} {seed}")
    for _ in range(MOST_STEPS):
        action = draw.choice(MALFORMED) if draw.random() < 0.03 else f"So: \\boxed{{{_move(name, env, draw)}}}"
        before = {key: _data(getattr(env, key)) for key in state}
        row = {"game": name, "kwargs": kwargs, "seed": seed, "turn": env.turn_count, "state": before, "action": action}
        _, reward, terminated, truncated, _ = env.step(action)
        print(json.dumps({**row, "reward": float(reward), "ended": bool(terminated or truncated)}))
        if terminated or truncated:
            break


def _data(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, dict):
        return {str(key): _data(each) for key, each in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(_data, value))
    return [_data(each) for each in value] if isinstance(value, (list, tuple)) else value


def _move(name: str, env: Any, draw: random.Random) -> str:
    """Return a move: often a good one, at times an illegal one."""
    good = draw.random() < 0.5
    if name == "GuessTheNumber":
        return str(draw.randint(env.min_number - 1, env.max_number + 1))
    if name == "Mastermind":
        length = env.code_length + (draw.random() < 0.05)
        digits = draw.sample(range(1, env.num_numbers + 1), length) if good else draw.choices(range(9), k=length)
        return " ".join(map(str, env.game_code if draw.random() < 0.05 else digits))
    if name in ("FifteenPuzzle", "Game2048", "Sokoban"):
        return draw.choice(DIRECTIONS)
    if name == "TowerofHanoi":
        return f"{draw.choice('ABC')} {draw.choice('ABC')}"
    if name == "Minesweeper":
        cell = draw.randint(0, env.rows), draw.randint(0, env.cols - 1)
        if good:
            safe = [(r, c) for r in range(env.rows) for c in range(env.cols) if env.grid[r][c] >= 0]
            cell = draw.choice([(r, c) for r, c in safe if not env.revealed[r][c]] or safe)
        flagged = [(r, c) for r in range(env.rows) for c in range(env.cols) if env.flags[r][c]]
        if flagged and draw.random() < 0.1:
            cell = draw.choice(flagged)
        return f"{draw.choice(['reveal'] * 7 + ['flag'] * 2 + ['dig'])} {cell[0]} {cell[1]}"
    if name == "Sudoku":
        row, col, digit = (draw.randint(0 if draw.random() < 0.1 else 1, env.scale) for _ in range(3))
        if good:
            cells = [(r, c) for r in range(env.scale) for c in range(env.scale) if not env.board[r][c]]
            row, col = draw.choice(cells)
            row, col, digit = row + 1, col + 1, env.full_grid[row][col]
        return f"{row} {col} {digit}"
    if name in ("Wordle", "Hangman"):
        if good and name == "Hangman":
            return draw.choice(env.secret_word * 5 + string.ascii_lowercase)
        word = env.secret_word if draw.random() < 0.2 else draw.choice(env.available_words)
        if draw.random() < 0.1:
            word = "".join(draw.sample(word, len(word)))  # which may be no word
        return word + "s" * (draw.random() < 0.1)
    if name == "WordSearch":
        numbers = [draw.randint(0, len(env.game_board)) for _ in range(4)]
        if good:
            word, (row, col, direction) = draw.choice(list(env.placed_words.items()))
            down = direction == "down"
            numbers = [row, col, row + down * (len(word) - 1), col + (not down) * (len(word) - 1)]
        return " ".join(map(str, numbers))
    row, col = draw.randint(0, len(env.board)), draw.randint(0, len(env.board[0]) - 1)
    letter = draw.choice(string.ascii_uppercase)
    if good:
        cells = [(r, c) for r, line in enumerate(env.board) for c, symbol in enumerate(line) if symbol == "_"]
        row, col = draw.choice(cells)
        letter = env.solution[row][col]
    return f"{row} {col} {letter}"


if __name__ == "__main__":
    main()
