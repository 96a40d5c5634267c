"""The games beside those of gem-llm 0.1.0: steps, resets and memory, in one run.

gem-llm gets a virtual environment of its own (kept in ``.venvs/gem-llm``). Both sides play in processes of their own,
in turn, game by game and round by round, and are given the same kind of moves from the same seeds; what is timed is
``step`` alone, or ``reset`` alone. gem-llm finds its word lists in a folder made of ours, and its attempt to download
them (at every Wordle and Hangman) is not counted against it.

    python ci/bench/envs.py [--rounds 5] [--games Sokoban,Wordle]

Exit code 1 if a figure falls short of :data:`GOALS`.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import random
import statistics
import string
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sides import Side, install_theirs, resident, serve

VARIANTS = ("easy", "hard", "random")
GAMES = (
    *("GuessTheNumber", "Mastermind", "Minesweeper", "Wordle", "FifteenPuzzle", "Hangman"),
    *("Sudoku", "TowerofHanoi", "Game2048", "Sokoban", "Crosswords", "WordSearch"),
)
GOALS = {
    "steps, median": 1.5,
    "steps, lowest": 1.0,
    "reset Sokoban-hard": 50,
    "reset Sokoban-random": 50,
    "reset Sudoku-hard": 20,
    "reset WordSearch-hard": 20,
}
"""Ratios: how many times faster than gem-llm."""
WORST_RESET = 0.020
MEMORY = {"game:Wordle-v0-hard": 8.0, "rg:letter_counting": 20.0}
"""MB for 1,000 environments, each reset once."""
NLTK_BASIC, NLTK_ALL = 850, 236_736
"""Words in the two lists that gem-llm reads."""


# --- In either side's process: nothing here knows which side it is on. ---


def moves(game: str, size: int, rng: random.Random) -> Callable[[], str]:
    """Return what draws moves of the right form, legal or not."""
    number = rng.randrange

    def word(length: int) -> str:
        return "".join(rng.choice(string.ascii_lowercase) for _ in range(length))

    def direction() -> str:
        return rng.choice(("up", "down", "left", "right"))

    return {
        "GuessTheNumber": lambda: str(number(1, size + 1)),
        "Mastermind": lambda: " ".join(rng.sample("12345678"[: 6 if size == 2 else 8], size)),
        "Minesweeper": lambda: f"{rng.choice(('reveal', 'reveal', 'flag'))} {number(size)} {number(size)}",
        "Wordle": lambda: rng.choice(WORDS[size]),
        "FifteenPuzzle": direction,
        "Hangman": lambda: word(1),
        "Sudoku": lambda: f"{number(1, size + 1)} {number(1, size + 1)} {number(1, size + 1)}",
        "TowerofHanoi": lambda: f"{rng.choice('ABC')} {rng.choice('ABC')}",
        "Game2048": direction,
        "Sokoban": direction,
        "Crosswords": lambda: f"{number(12)} {number(12)} {word(1)}",
        "WordSearch": lambda: f"{(row := number(10))} {(col := number(8))} {row} {col + number(2, 6)}",
    }[game]


WORDS: dict[int, list[str]] = {}


def size_of(game: str, env: Any) -> int:
    """Return what moves depend on, from the attributes that both sides have."""
    if game == "Mastermind":
        return env.code_length
    if game == "Minesweeper":
        return env.rows
    if game == "Sudoku":
        return env.scale
    if game == "GuessTheNumber":
        return env.max_number
    return env.word_length if game == "Wordle" else 0


def time_steps(env_id: str, game: str, seconds: float, first_seed: int) -> float:
    """Return the median of steps per second over episodes."""
    import gem

    env = gem.make(env_id)
    rates = []
    end = time.perf_counter() + seconds
    for seed in itertools.count(first_seed):
        env.reset(seed=seed)
        move = moves(game, size_of(game, env), random.Random(seed))
        actions = [f"I say \\boxed{{{move()}}}" for _ in range(120)]
        gc.collect(0)
        steps = 0
        begin = time.perf_counter()
        for action in actions:
            steps += 1
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                break
        rates.append(steps / (time.perf_counter() - begin))
        if len(rates) >= 3 and time.perf_counter() > end:
            return statistics.median(rates)


def time_resets(env_id: str, count: int, repeats: int) -> dict[str, float]:
    """Return median and worst of the seconds of a reset; a seed counts with its best of ``repeats``."""
    import gem

    env = gem.make(env_id)
    env.reset(seed=10**6)  # word lists and tables are loaded once a process
    best = [float("inf")] * count
    for _, seed in itertools.product(range(repeats), range(count)):
        begin = time.perf_counter()
        env.reset(seed=seed)
        best[seed] = min(best[seed], time.perf_counter() - begin)
    return {"median": statistics.median(best), "worst": max(best)}


def memory(env_id: str, count: int) -> float:
    """Return the MB that environments take, with all that they load; modules are imported beforehand."""
    import gem

    gem.make("game:GuessTheNumber-v0-easy")
    if env_id.startswith("rg:"):
        import reasoning_gym  # noqa: F401
    gc.collect()
    before = resident()
    envs = [gem.make(env_id) for _ in range(count)]
    for seed, env in enumerate(envs):
        env.reset(seed=seed)
    gc.collect()
    return (resident() - before) / 1e6


def set_words(words: dict[str, list[str]]) -> None:
    """Take the words to guess in Wordle, by their length."""
    WORDS.update({int(length): each for length, each in words.items()})


def work() -> None:
    """Answer requests."""
    try:
        import nltk

        nltk.download = lambda *args, **kwargs: True
    except ImportError:
        pass
    serve({"steps": time_steps, "resets": time_resets, "memory": memory, "words": set_words})


# --- In the process that compares. ---


def write_words(folder: Path) -> dict[int, list[str]]:
    """Write our words in the form, and of the number, in which gem-llm reads its own; return the common ones."""
    from gem.envs.game_env.words import ACCEPTED_LENGTHS, COMMON_LENGTHS, accepted, common

    lists = {length: list(common(length)) for length in COMMON_LENGTHS}
    everyday = [word for words in lists.values() for word in words]
    everything = [word for length in ACCEPTED_LENGTHS for word in accepted(length)]
    target = folder / "corpora" / "words"
    target.mkdir(parents=True, exist_ok=True)
    (target / "README").write_text("")
    (target / "en-basic").write_text("\n".join(everyday[:: len(everyday) // NLTK_BASIC]) + "\n")
    (target / "en").write_text("\n".join(itertools.islice(itertools.cycle(everything), NLTK_ALL)) + "\n")
    return lists


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="of measuring both sides in turn")
    parser.add_argument("--seconds", type=float, default=0.3, help="of stepping, a round")
    parser.add_argument("--games", default=",".join(GAMES))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work()
        return
    raise SystemExit(compare(options))


def compare(options: argparse.Namespace) -> int:
    """Measure, print tables, and return the exit code."""
    import tempfile

    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    console = Console()
    theirs_python = install_theirs()
    missed: list[str] = []

    def verdict(name: str, value: float, goal: float, low: bool = False) -> str:
        if value > goal if low else value < goal:
            missed.append(f"{name}: {value:.3g}, goal {goal:g}")
            return f"[red]{value:.3g}[/]"
        return f"{value:.3g}"

    games = options.games.split(",")
    ids = [(game, variant, f"game:{game}-v0-{variant}") for game in games for variant in VARIANTS]
    with tempfile.TemporaryDirectory() as folder:
        words = write_words(Path(folder))
        variables = {"NLTK_DATA": folder, "TQDM_DISABLE": "1"}
        with (
            Side(sys.executable, __file__, variables) as ours,
            Side(theirs_python, __file__, variables) as theirs,
        ):
            for side in (ours, theirs):
                side.ask("words", words)
            table = Table("game", "ours, steps/s", "gem-llm", "times", title="steps")
            ratios = []
            for game, variant, env_id in track(ids, "steps", console=console, transient=True):
                rates: list[tuple[float, float]] = []
                for number in range(options.rounds):
                    request = [env_id, game, options.seconds, 1000 * number]
                    pair = ours.ask("steps", *request), theirs.ask("steps", *request)
                    if isinstance(pair[1], dict):
                        table.add_row(f"{game}-{variant}", f"{pair[0]:,.0f}", pair[1]["error"][:60], "")
                        break
                    rates.append(pair)
                else:
                    ratio = statistics.median(a / b for a, b in rates)
                    ratios.append(ratio)
                    a, b = (statistics.median(side) for side in zip(*rates, strict=True))
                    shown = verdict(f"steps {game}-{variant}", ratio, GOALS["steps, lowest"])
                    table.add_row(f"{game}-{variant}", f"{a:,.0f}", f"{b:,.0f}", shown)
            median = verdict("steps, median", statistics.median(ratios), GOALS["steps, median"])
            table.add_section()
            table.add_row("median", "", "", median)
            console.print(table)

            table = Table("game", "ours, ms", "worst", "gem-llm, ms", "worst", "times", title="resets")
            for game, variant, env_id in track(ids, "resets", console=console, transient=True):
                a = ours.ask("resets", env_id, 300, 3)
                b = theirs.ask("resets", env_id, 5 if game == "Sokoban" else 40, 1)
                worst = verdict(f"worst reset {game}-{variant}, ms", 1e3 * a["worst"], 1e3 * WORST_RESET, low=True)
                if "error" in b:
                    cells, times = (b["error"][:40], ""), ""
                else:
                    ratio = b["median"] / a["median"]
                    goal = GOALS.get(f"reset {game}-{variant}", 0.0)
                    cells = f"{1e3 * b['median']:.3f}", f"{1e3 * b['worst']:.3f}"
                    times = verdict(f"reset {game}-{variant}", ratio, goal)
                table.add_row(f"{game}-{variant}", f"{1e3 * a['median']:.3f}", worst, *cells, times)
            console.print(table)

        table = Table("1,000 of", "ours, MB", "gem-llm, MB", title="memory")
        for env_id, goal in MEMORY.items():
            sizes = []
            for python in (sys.executable, theirs_python):
                with Side(python, __file__, variables) as side:
                    sizes.append(side.ask("memory", env_id, 1000))
            their_size = sizes[1]["error"][:60] if isinstance(sizes[1], dict) else f"{sizes[1]:.1f}"
            table.add_row(env_id, verdict(f"memory {env_id}", sizes[0], goal, low=True), their_size)
        console.print(table)
    for line in missed:
        console.print(f"[red]missed[/] {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    main()
