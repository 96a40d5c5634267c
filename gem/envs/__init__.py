"""The environments. This file registers them; their modules are imported by the first ``make``."""

from gem.envs.registration import register


def _register_games() -> None:
    for version, shaped in (("v0", True), ("v1", False)):
        guess = {"": (1, 50, 7), "-hard": (1, 50, 7), "-easy": (1, 10, 4), "-random": (None, None, None)}
        for variant, (low, high, turns) in guess.items():
            register(
                f"game:GuessTheNumber-{version}{variant}",
                "gem.envs.game_env.guess_the_number:GuessTheNumberEnv",
                min_number=low,
                max_number=high,
                max_turns=turns,
                shaped=shaped,
            )
    mastermind = {"": (4, 8, 30), "-hard": (4, 8, 30), "-easy": (2, 6, 10), "-random": (None, None, None)}
    for variant, (length, numbers, turns) in mastermind.items():
        register(
            f"game:Mastermind-v0{variant}",
            "gem.envs.game_env.mastermind:MastermindEnv",
            code_length=length,
            num_numbers=numbers,
            max_turns=turns,
        )
    minesweeper = {"": (8, 12, 64), "-hard": (8, 12, 64), "-easy": (5, 5, 25), "-random": (None, None, None)}
    for variant, (size, mines, turns) in minesweeper.items():
        register(
            f"game:Minesweeper-v0{variant}",
            "gem.envs.game_env.minesweeper:MinesweeperEnv",
            rows=size,
            cols=size,
            num_mines=mines,
            max_turns=turns,
        )
    hanoi = {"": (5, 35), "-hard": (5, 35), "-easy": (3, 10), "-random": (None, None)}
    for variant, (disks, turns) in hanoi.items():
        register(
            f"game:TowerofHanoi-v0{variant}",
            "gem.envs.game_env.tower_of_hanoi:TowerofHanoiEnv",
            num_disks=disks,
            max_turns=turns,
        )


_register_games()
