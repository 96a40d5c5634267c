"""Write docs/environments: every environment, what it pays, and what random play and a reference solver earn in it.

The figures are played for, here and now, and the texts are taken from the environments and their modules.

    python ci/environments_page.py [--episodes 100]
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import statistics
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.progress import track

import gem
from gem.core import Env, EnvSpec
from gem.envs.datasets import needs_hub
from gem.envs.reasoning_gym_rules import HACKABLE, PARTIAL_CREDIT
from gem.registry import all_specs
from gem.testing.solvers import find_solver, solve

PAGES = Path(__file__).parents[1] / "docs" / "environments"
EXAMPLE_TURNS = 4
EXAMPLE_CHARACTERS = 1_200

HEAD = """\
# Environments

<!-- Written by ci/environments_page.py: change that, or the environments, and run it again. -->

Every id of this package. *Random* is the mean return of random legal actions, *solver* that of a reference solver: a
script that reads nothing but the observations (games), or the reference answer (questions). Both were run for this
page: {episodes} episodes of random actions per id, {good} of the solver. An id without a variant is the hard one.
[Differences](../differences.md) lists what is not as in `gem-llm` 0.1.0.

| page | environments |
|---|---|
| [Games](games.md) | {games}: several turns, a reference solver for each |
| [Terminal](terminal.md) | {terminal}: tasks with files and commands |
| [reasoning_gym](reasoning_gym.md) | {rg}: one question per episode, made from the seed |
| [Questions](questions.md) | {questions}: maths, code, question answering and logic, from data at hand |
| [Questions from a hub](hub.md) | {hub}: the published data sets |
"""

WRITTEN = "\n\n<!-- Written by ci/environments_page.py: change that, or the environments, and run it again. -->\n\n"


def random_return(env: Env, episodes: int) -> float:
    """Return the mean return of random actions."""
    returns = []
    for seed in range(episodes):
        env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            _, reward, terminated, truncated, _ = env.step(env.sample_random_action())
            total, over = total + reward, terminated or truncated
        returns.append(total)
    return statistics.fmean(returns)


def good_return(env: Env, episodes: int) -> float | None:
    """Return the mean return of the solver, or of the reference answers; None where there is neither."""
    if find_solver(env.env_id or ""):
        return statistics.fmean(solve(env, seed).return_ for seed in range(episodes))
    returns = []
    for seed in range(episodes):
        env.reset(seed=seed)
        try:
            returns.append(env.step(env.reference_action())[1])  # type: ignore[attr-defined]
        except NotImplementedError:
            continue
    return statistics.fmean(returns) if returns else None


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def row(cells: Iterable[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |\n"


def table(*head: str) -> str:
    return row(head) + row(["---"] * len(head))


def fenced(text: str) -> str:
    text = text if len(text) <= EXAMPLE_CHARACTERS else text[:EXAMPLE_CHARACTERS] + " [...]"
    return f"````text\n{text}\n````\n"


def example(env: Env) -> str:
    """Return an episode of the reference solver, or its first turns."""
    observation, _ = env.reset(seed=0)
    solver = find_solver(env.env_id or "")
    player = solver(observation) if solver else None
    lines = [observation]
    action = next(player) if player else _reference_or_random(env)
    for turn in range(1, EXAMPLE_TURNS + 1):
        observation, reward, terminated, truncated, _ = env.step(action)
        lines += ["", f">>> {action}", "", f"[reward {reward:.3f}] {observation}"]
        if terminated or truncated:
            break
        if turn == EXAMPLE_TURNS:
            lines += ["", "... and so on"]
        elif player:
            action = player.send(observation)
    return "\n".join(lines)


def _reference_or_random(env: Env) -> str:
    try:
        return env.reference_action()  # type: ignore[attr-defined]
    except NotImplementedError:
        return env.sample_random_action()


def details(title: str, text: str) -> str:
    return f'<details markdown="1"><summary>{title}</summary>\n\n{fenced(text)}\n</details>\n'


def games(specs: list[EnvSpec], episodes: int, good: int) -> str:
    """Return one section per game."""
    by_game: dict[str, list[EnvSpec]] = {}
    for spec in specs:
        by_game.setdefault(spec.id.split("-v")[0].removeprefix("game:"), []).append(spec)
    text = f"# Games{WRITTEN}" + "The action is the last `\\boxed{...}` of the text. "
    text += "Text without a move costs 0.1 and ends the episode; an illegal move pays 0 and spends the turn.\n"
    for name, variants in by_game.items():
        text += f"\n## {name}\n\n{documentation(variants[0])}\n\n" + table("id", "turns", "random", "solver")
        for spec in track(variants, name, transient=True):
            with gem.make(spec.id) as env:
                env.reset(seed=0)
                turns = env.max_turns if spec.kwargs["max_turns"] else "drawn"
                figures = number(random_return(env, episodes)), number(good_return(env, good))
                text += row([f"`{spec.id}`", turns, *figures])
        shown = next(spec.id for spec in variants if spec.id.endswith("-easy"))
        with gem.make(shown) as env:
            text += "\n" + details(f"<code>{shown}</code>, seed 0", example(env))
    return text


def documentation(spec: EnvSpec) -> str:
    """Return what the module says of a game, and what its class says of the action."""
    entry: Any = spec.load()
    module = inspect.cleandoc(importlib.import_module(entry.__module__).__doc__ or "")
    action = inspect.cleandoc(entry.__doc__ or "").split("\n\n")[0]
    return f"{module.partition(': ')[2][:1].upper()}{module.partition(': ')[2][1:]}\n\n{action}".replace("``", "`")


def questions(specs: list[EnvSpec], episodes: int, good: int) -> str:
    """Return the section of what is asked from data at hand."""
    text = f"# Questions, from data at hand{WRITTEN}" + table("id", "questions", "random", "solver")
    examples = ""
    for spec in track(specs, "questions", transient=True):
        with gem.make(spec.id) as env:
            figures = number(random_return(env, min(episodes, 20))), number(good_return(env, good))
            text += row([f"`{spec.id}`", env.size, *figures])  # type: ignore[attr-defined]
            examples += details(f"<code>{spec.id}</code>, seed 0", example(env))
    return f"{text}\n{examples}"


def reasoning_gym(specs: list[EnvSpec], episodes: int, good: int) -> str:
    """Return the section of reasoning_gym's data sets."""
    text = f"# reasoning_gym{WRITTEN}" + textwrap.dedent(
        """\
        One question per episode, made from the seed when it is asked; the answer is the last `\\boxed{...}`, graded
        from 0 to 1 by the data set's own scorer. A random action is the right answer to another question. *Partial* is
        the score above which partial credit counts; where there is none, only a right answer earns anything
        (`raw_scores=True` returns the scorer's own numbers, which wrong answers earn, too).
        Arguments of the data set are arguments of `gem.make`, such as `gem.make("rg:chain_sum", max_terms=3)`.

        """
    )
    text += table("id", "random", "solver", "partial")
    examples = ""
    for spec in track(specs, "reasoning_gym", transient=True):
        name = spec.kwargs["name"]
        if name in HACKABLE:
            text += row([f"`{spec.id}`", "", "", f"refused unless `allow_hackable=True`: {HACKABLE[name]}"])
            continue
        with gem.make(spec.id) as env:
            figures = number(random_return(env, min(episodes, 20))), number(good_return(env, good))
            text += row([f"`{spec.id}`", *figures, PARTIAL_CREDIT.get(name, "")])
            examples += details(f"<code>{spec.id}</code>, seed 0", example(env))
    return f"{text}\n{examples}"


def terminal(specs: list[EnvSpec], episodes: int, good: int) -> str:
    """Return the section of the tasks for a shell."""
    text = f"# Terminal{WRITTEN}" + textwrap.dedent(
        """\
        A shell in the sandbox, and a task that ends with a check of the files: [terminal tasks](../terminal.md).
        Reward: 1 if the check passes, else 0. The seed makes the files. A random action is a harmless command, or the
        end; the solver runs the solution that is part of the task.

        """
    )
    text += table("id", "turns", "tasks", "random", "solver")
    examples = ""
    for spec in track(specs, "terminal", transient=True):
        with gem.make(spec.id) as env:
            figures = number(random_return(env, min(episodes, 20))), number(good_return(env, min(good, 5)))
            text += row([f"`{spec.id}`", env.max_turns, env.size, *figures])  # type: ignore[attr-defined]
            if env.size == 1:  # type: ignore[attr-defined]
                examples += details(f"<code>{spec.id}</code>, seed 0", example(env))
    return f"{text}\n{examples}"


def hub(specs: list[EnvSpec]) -> str:
    """Return the section of what is loaded from a hub."""
    text = f"# Questions, from a hub{WRITTEN}Loaded by `datasets.load_dataset` at the first use; "
    text += (
        '`dataset_name="folder/or/file.jsonl"` takes a local copy. They have the rules of [the samples](questions.md). '
    )
    text += "No figures: nothing was loaded for this page.\n\n" + table("id", "data set", "split", "environment")
    for spec in specs:
        kwargs = spec.kwargs
        text += row(
            [
                f"`{spec.id}`",
                f"`{kwargs['dataset_name']}`",
                kwargs.get("split") or "",
                str(spec.entry_point).split(":")[1],
            ]
        )
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--good", type=int, default=20)
    options = parser.parse_args()
    counts = options.episodes, options.good
    specs = list(all_specs().values())
    rest = [spec for spec in specs if not spec.id.startswith(("game:", "rg:", "terminal:"))]
    families = {
        "games": [spec for spec in specs if spec.id.startswith("game:")],
        "terminal": [spec for spec in specs if spec.id.startswith("terminal:")],
        "rg": [spec for spec in specs if spec.id.startswith("rg:")],
        "questions": [spec for spec in rest if not needs_hub(spec)],
        "hub": [spec for spec in rest if needs_hub(spec)],
    }
    pages = {
        "index": HEAD.format(
            episodes=options.episodes, good=options.good, **{name: len(some) for name, some in families.items()}
        ),
        "games": games(families["games"], *counts),
        "terminal": terminal(families["terminal"], *counts),
        "reasoning_gym": reasoning_gym(families["rg"], *counts),
        "questions": questions(families["questions"], *counts),
        "hub": hub(families["hub"]),
    }
    PAGES.mkdir(exist_ok=True)
    for name, text in pages.items():
        (PAGES / f"{name}.md").write_text(text, encoding="utf-8")
    print(f"wrote {PAGES}: {len(specs)} environments")


if __name__ == "__main__":
    main()
