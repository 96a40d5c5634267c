"""Play the games of gem-llm 0.1.0 and of this package from equal boards with equal actions, and print what differs.

    python ci/dropin_games.py .venvs/gem-llm/bin/python

The steps are those of ci/dropin_published.py, each from the state in which gem-llm's environment was. What is compared
is the reward, and whether the episode ends. Each difference must be of a kind in :data:`REASONS`, or this fails.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gem
from gem.envs.game_env import words
from gem.envs.game_env.sokoban.utils import FIXED, NUMBERS

FAMILIES, SEEDS, LEAST_STEPS = 12, 20, 4_000

Step = dict[str, Any]
Result = tuple[float, bool, dict[str, Any]]


def main() -> None:
    script = Path(__file__).with_name("dropin_published.py")
    played = subprocess.run(
        [sys.argv[1], "-I", "-W", "ignore", script], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    steps = [json.loads(line) for line in played.stdout.splitlines()]
    games = {(step["game"], json.dumps(step["kwargs"]), step["seed"]) for step in steps}
    counts: Counter[tuple[str, str]] = Counter()
    unknown = []
    for step in steps:
        result = _step(step)
        if abs(result[0] - step["reward"]) > 1e-9 or result[1] != step["ended"]:
            reason = next(_reasons(step, result), None)
            if reason is None:
                unknown.append((step, result))
            else:
                counts[step["game"], reason] += 1
    print(f"{len(steps)} steps of {len(games)} games; {sum(counts.values()) + len(unknown)} steps differ")
    for (game, reason), count in sorted(counts.items()):
        print(f"  {count} of {game}: {reason}")
    for step, (reward, ended, info) in unknown:
        print(f"✗ {json.dumps(step)}\n  here: reward {reward:g}, {'ended' if ended else 'goes on'}, {info}")
    if len(games) != FAMILIES * 2 * SEEDS or len(steps) < LEAST_STEPS:
        sys.exit(f"{len(games)} games of {len(steps)} steps were played: some are missing")
    if unknown:
        sys.exit(f"{len(unknown)} steps differ without a reason")


def _boxed(step: Step) -> str:
    found = re.findall(r"\\boxed\{(.*?)\}", step["action"])
    return found[-1] if found else ""


def _all_letters(step: Step, result: Result) -> bool:
    guess = _boxed(step).upper()
    letters = {*step["state"]["guessed_letters"], guess}
    return len(guess) == 1 and set(step["state"]["secret_word"]) <= letters and bool(result[2]["success"])


def _same_digits(step: Step, result: Result) -> bool:
    digits = _boxed(step).split()
    return len(set(digits)) < len(digits) and result[2]["move"] == "illegal"


def _no_such_word(step: Step, result: Result) -> bool:
    return not words.is_word(_boxed(step).lower()) and result[2]["move"] == "illegal"


def _flagged_mine(step: Step, result: Result) -> bool:
    command, row, col = _boxed(step).split()
    cell = int(row), int(col)
    flag, number = (step["state"][name][cell[0]][cell[1]] for name in ("flags", "grid"))
    return command == "reveal" and flag and number < 0 and result[2]["move"] == "illegal"


def _last_safe_cell(step: Step, result: Result) -> bool:
    cells = zip(_flat(step["state"]["grid"]), _flat(step["state"]["revealed"]), strict=True)
    hidden = sum(number >= 0 and not is_open for number, is_open in cells)
    rest = abs(result[0] - step["reward"]) < 1e-9 and hidden > 0  # it pays the same, and goes on there
    return rest and bool(result[2]["success"])


def _zero(step: Step, result: Result) -> bool:
    return _boxed(step) == "0" and step["kwargs"]["min_number"] > 0 and result[0] == 0.0


REASONS: dict[str, list[tuple[Callable[[Step, Result], bool], str]]] = {
    "Hangman": [(_all_letters, "guessing all letters wins")],
    "Mastermind": [(_same_digits, "a guess with a digit twice, where the code has none, is illegal")],
    "Wordle": [(_no_such_word, "a guess that is no word is illegal")],
    "Minesweeper": [
        (_flagged_mine, "a flagged mine cannot be opened"),
        (_last_safe_cell, "opening all safe cells wins"),
    ],
    "GuessTheNumber": [(_zero, "0 is a number outside the range, and no format error")],
}


def _reasons(step: Step, result: Result) -> Iterator[str]:
    return (reason for applies, reason in REASONS.get(step["game"], []) if applies(step, result))


def _step(step: Step) -> Result:
    """Put an environment into the state before a step, and make it."""
    kwargs = {name: tuple(value) if isinstance(value, list) else value for name, value in step["kwargs"].items()}
    env = gem.make(f"game:{step['game']}-v0-easy", **kwargs)
    env.reset(seed=0)
    env.turn_count = step["turn"]
    _SETTERS.get(step["game"], _set_attributes)(env, step["state"])
    _, reward, terminated, truncated, info = env.step(step["action"])
    return float(reward), terminated or truncated, info


def _set_attributes(env: Any, state: dict[str, Any]) -> None:
    for name, value in state.items():
        setattr(env, name, value)


def _flat(rows: list[list[Any]]) -> list[Any]:
    return [cell for row in rows for cell in row]


def _mastermind(env: Any, state: dict[str, Any]) -> None:
    env.game_code, env.milestone = state["game_code"], state["milestone"]
    env.previous_guesses = {" ".join(map(str, guess)): 0 for guess in state["previous_guesses"]}


def _fifteen_puzzle(env: Any, state: dict[str, Any]) -> None:
    env.tiles = [tile or 0 for tile in _flat(state["board"])]


def _minesweeper(env: Any, state: dict[str, Any]) -> None:
    numbers, opened, flags = (_flat(state[name]) for name in ("grid", "revealed", "flags"))
    env.mines = [cell for cell, number in enumerate(numbers) if number < 0]
    env.counts = [max(0, number) for number in numbers]
    env.cells = [
        str(max(0, number)) if is_open else "F" if flag else "."
        for number, is_open, flag in zip(numbers, opened, flags, strict=True)
    ]
    env.left = sum(number >= 0 and not is_open for number, is_open in zip(numbers, opened, strict=True))


def _sudoku(env: Any, state: dict[str, Any]) -> None:
    env.solution, env.cells = _flat(state["full_grid"]), _flat(state["board"])
    env.init_num_empty = state["init_num_empty"]


def _sokoban(env: Any, state: dict[str, Any]) -> None:
    symbols = {(NUMBERS[symbol], FIXED[symbol]): symbol for symbol in NUMBERS}
    symbols[NUMBERS["X"], FIXED["O"]] = "√"
    pairs = zip(_flat(state["room_state"]), _flat(state["room_fixed"]), strict=True)
    env.board = [symbols[pair] for pair in pairs]
    env.cols = len(state["room_state"][0])
    env.player = next(cell for cell, symbol in enumerate(env.board) if symbol in "PS")
    env.num_boxes = sum(symbol in "X√" for symbol in env.board)


def _wordle(env: Any, state: dict[str, Any]) -> None:
    env.secret_word = state["secret_word"]
    env.previous_guesses = {guess.lower(): "" for guess in state["previous_guesses"]}
    env.green = [i for i, reached in enumerate(state["milestones"]) if reached]


def _hangman(env: Any, state: dict[str, Any]) -> None:
    env.secret_word, env.board = state["secret_word"], "".join(state["board"]).lower()
    env.guessed_letters = [letter.lower() for letter in state["guessed_letters"]]


def _word_search(env: Any, state: dict[str, Any]) -> None:
    env.grid = ["".join(row) for row in state["game_board"]]
    env.lines = [f"{row:>2}  {'  '.join(line)}" for row, line in enumerate(env.grid)]
    env.words = list(state["placed_words"])
    env.places = [
        [row, col, row + (len(word) - 1) * (way == "down"), col + (len(word) - 1) * (way != "down")]
        for word, (row, col, way) in state["placed_words"].items()
    ]
    env.correct_words, env.attempts = state["correct_words"], state["attempts"]


def _crosswords(env: Any, state: dict[str, Any]) -> None:
    env.solution = ["".join(row).upper() for row in state["solution"]]
    env.lines = [f"{row:>2}  {'  '.join(line)}" for row, line in enumerate(state["board"])]
    env.cells = sum(cell != "." for cell in _flat(state["board"]))
    env.empty, env.clues = _flat(state["board"]).count("_"), []


_SETTERS: dict[str, Callable[[Any, dict[str, Any]], None]] = {
    "Mastermind": _mastermind,
    "FifteenPuzzle": _fifteen_puzzle,
    "Minesweeper": _minesweeper,
    "Sudoku": _sudoku,
    "Sokoban": _sokoban,
    "Wordle": _wordle,
    "Hangman": _hangman,
    "WordSearch": _word_search,
    "Crosswords": _crosswords,
}


if __name__ == "__main__":
    main()
