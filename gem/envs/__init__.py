"""The environments. This file registers them; their modules are imported by the first ``make``.

Ids, parameters and hub names are those that ``gem-llm`` 0.1.0 publishes. A game's id without a variant is its hard
variant; None as a parameter is drawn at each reset.
"""

from __future__ import annotations

from typing import Any

from gem.envs.reasoning_gym_names import NAMES as REASONING_GYM_NAMES
from gem.registry import register

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
    # in v0 these two are out of reach: the tiles of 50 or 100 turns do not add up to 512 or 2048
    _register_game(
        "Game2048",
        "game_2048:Game2048Env",
        "target_tile max_turns",
        {"-hard": (512, 400), "-extreme-hard": (2048, 2000)},
        {"v1": {}},
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


def _register_question(
    env_id: str, entry_point: str, dataset_name: str, split: str | None = None, **kwargs: Any
) -> None:
    register(env_id, f"gem.envs.{entry_point}", dataset_name=dataset_name, split=split, **kwargs)


def _register_questions() -> None:
    maths, code, qa = "math_env:MathEnv", "code_env:CodeEnv", "qa_env:QaEnv"
    for name, dataset in {
        "ASDiv2K": "ASDIV-2k",
        "GSM8K": "GSM-8k",
        "Math12K": "MATH-12k",
        "Math8K-3to5": "MATH-lvl3to5-8k",
        "Orz57K": "ORZ-57k",
        "DeepScaleR40K": "DeepScaleR-40K",
    }.items():
        _register_question(f"math:{name}", maths, f"axon-rl/{dataset}")
    _register_question("math:Geometry3K", "math_visual_env:MathVisualEnv", "axon-rl/geometry3k", "train")
    for name, dataset in {
        "CodeContest": "CodeContest",
        "Taco8k": "TACO-8k",
        "PrimeIntellect15k": "PrimeIntellect-15k",
    }.items():
        _register_question(f"code:{name}", code, f"axon-rl/{dataset}", "train")
    for depth in (0, 1, 2, 3, 5):
        _register_question(
            f"logic:RuleTaker-d{depth}", "logic_env:LogicEnv", f"axon-rl/RuleTaker-d{depth}-70k", "train"
        )
    for name in ("NaturalQuestions", "HotpotQA"):
        _register_question(f"qa:{name}", qa, f"axon-rl/{name}", "train", question_key="problem")

    for name, split in {
        "MATH500": "math",
        "AMC": "amc",
        "OlympiadBench": "olympiad_bench",
        "Minerva": "minerva",
        "AIME24": "aime24",
    }.items():
        _register_question(f"eval:{name}", maths, "axon-rl/math-eval", split)
    _register_question("eval:CodeContest", code, "axon-rl/CodeContest", "test")
    _register_question("eval:QaOpen", qa, "google-research-datasets/nq_open", "validation")
    for name, split in {
        "2Wiki": "2wiki",
        "PopQA": "popqa",
        "TriviaQA": "tq",
        "HotpotQA": "hotpotqa",
        "Bamboogle": "bamboogle",
        "NaturalQuestions": "nq",
        "Musique": "musique",
    }.items():
        _register_question(f"eval:{name}", qa, "axon-rl/search-eval", split)

    for family, entry_point in {"math": maths, "code": code, "qa": qa, "logic": "logic_env:LogicEnv"}.items():
        _register_question(f"{family}:Sample", entry_point, f"sample:{family}")
    register("code:HumanEval", "gem.envs.human_eval:HumanEvalEnv")


def _register_terminal() -> None:
    entry_point = "gem.envs.terminal_env:TerminalEnv"
    for name, task in {
        "FixScript": "fix-script",
        "LogErrors": "log-errors",
        "RenamePhotos": "rename-photos",
        "RestoreBackup": "restore-backup",
        "SalesReport": "sales-report",
    }.items():
        register(f"terminal:{name}-v0", entry_point, task=f"sample:{task}")
    register("terminal:All-v0", entry_point, tasks="sample:")


_register_games()
_register_questions()
_register_reasoning_gym()
_register_terminal()
