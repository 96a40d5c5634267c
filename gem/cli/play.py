"""``gem play``: an environment in the terminal."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Annotated

import typer

from gem.cli.lookup import build
from gem.cli.printing import say, stop
from gem.core import Env


def play(
    env_id: Annotated[str, typer.Argument(metavar="ID", help="The environment.")],
    seed: Annotated[int | None, typer.Option(min=0, help="Fixes the episode.")] = None,
    random: Annotated[bool, typer.Option("--random", help="Let random legal actions play.")] = False,
) -> None:
    r"""Play an environment in the terminal.

    Type an action and press Enter: a bare answer is put into the form that is asked for, \boxed{...} say.

    Ctrl-D or Ctrl-C leaves the game.
    """
    with build(env_id) as env:
        try:
            _play(env, seed, _random_action if random else lambda env, observation: typed_action(observation))
        except (EOFError, KeyboardInterrupt):
            say("\nThe game was left.")
        except NotImplementedError as error:
            stop(str(error))


def _play(env: Env, seed: int | None, act: Callable[[Env, str], str]) -> None:
    observation, _ = env.reset(seed=seed)
    total = 0.0
    for turn in itertools.count(1):
        say(f"\n{observation}\n")
        observation, reward, terminated, truncated, info = env.step(act(env, observation))
        total += reward
        say(f"turn {turn}: reward {reward:g}, return {total:g}")
        if terminated or truncated:
            break
    outcome = "" if "success" not in info else ", solved" if info["success"] else ", not solved"
    say(f"\n{observation}\n\n{'Terminated' if terminated else 'Truncated'}{outcome}. Return {total:g}.")


def _random_action(env: Env, observation: str) -> str:
    action = env.sample_random_action()
    say(f"> {action}")
    return action


def typed_action(observation: str) -> str:
    """Read an action; a bare answer is put into the form that an observation asks for.

    Raises:
        EOFError: the input has ended.
    """
    text = ""
    while not text.strip():  # Enter alone is no action
        text = input("> ")
    if any(form in text for form in ("\\boxed", "<answer>", "```")):
        return text
    return f"<answer>{text}</answer>" if "<answer>" in observation else f"\\boxed{{{text}}}"
